// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/device/code.hpp"

#ifdef __CUDACC__

#include <cstdint>
#include <type_traits>

#include <cuda_runtime.h>

#include "orrery/tensor/float16.hpp"

namespace orrery::detail {

/// The operations of one thread of a block on a GPU. Collective operations of a warp must be called by all of its
/// lanes.
///
/// Shared memory is addressed in bytes from the beginning of the block's; accesses are aligned to their size. Fragments
/// and matrices have the layouts of mma.m16n8k16 and ldmatrix (PTX ISA 8.0, sections 9.7.13.4.8 and 9.7.13.4.15).
struct gpu_threads {
  /// The index of the block in the launch, and of the thread in the block.
  [[nodiscard]] __device__ std::int64_t block() const { return blockIdx.x; }
  [[nodiscard]] __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  [[nodiscard]] __device__ int warp() const { return static_cast<int>(threadIdx.x) / 32; }
  [[nodiscard]] __device__ int lane() const { return static_cast<int>(threadIdx.x) % 32; }

  /// Waits for all threads of the block; each then sees what the others have written.
  __device__ void barrier() const { __syncthreads(); }

  /// Waits for all lanes of the warp; each then sees what the others have written.
  __device__ void converge() const { __syncwarp(); }

  template <class T>
  [[nodiscard]] __device__ T load(int offset) const {
    return *reinterpret_cast<const T*>(shared() + offset);
  }
  template <class T>
  __device__ void store(int offset, T value) const {
    *reinterpret_cast<T*>(shared() + offset) = value;
  }

  /// Reads or writes sixteen aligned bytes of global memory.
  [[nodiscard]] __device__ vector_words read_vector(const void* from) const {
    const uint4 v = *static_cast<const uint4*>(from);
    return {{v.x, v.y, v.z, v.w}};
  }
  __device__ void write_vector(void* to, const vector_words& v) const {
    *static_cast<uint4*>(to) = uint4{v.word[0], v.word[1], v.word[2], v.word[3]};
  }

  /// Reads or writes two floats of global memory, at a multiple of eight bytes.
  [[nodiscard]] __device__ float_pair read_pair(const float* from) const {
    const float2 v = *reinterpret_cast<const float2*>(from);
    return {{v.x, v.y}};
  }
  __device__ void write_pair(float* to, const float_pair& v) const {
    *reinterpret_cast<float2*>(to) = float2{v.of[0], v.of[1]};
  }

  /// Starts to copy sixteen bytes, aligned on both sides, from global to shared memory. Writes zeros if not `present`.
  __device__ void copy_async(int offset, const void* from, bool present) const {
    const int bytes = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(offset)), "l"(from), "r"(bytes)
                 : "memory");
  }
  /// The same of four bytes.
  __device__ void copy_word_async(int offset, const void* from, bool present) const {
    const int bytes = present ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address(offset)), "l"(from), "r"(bytes)
                 : "memory");
  }
  /// Makes a group of the copies that this thread has started since the last group.
  __device__ void commit_copies() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  /// Waits until all but the last `pending` groups of this thread have arrived. Other threads see them after a barrier.
  template <int pending>
  __device__ void wait_for_copies() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
  }

  /// Returns the value of the lane whose index differs in the bits of `mask`.
  ///
  /// Kernels reduce by a few of these, of the lanes that share a row or a column of fragments. CUB's reductions are not
  /// used for it: they are written for CUDA's own threads, so that nothing else could run such a kernel, and for
  /// consecutive lanes. No kernel scans, and none plans: offsets of documents, tiles and chunks are computed on the
  /// host.
  template <class T>
  [[nodiscard]] __device__ T shuffle_xor(T value, int mask) const {
    return __shfl_xor_sync(0xffffffffu, value, mask);
  }

  /// Returns true if `value` is true in any lane of the warp.
  [[nodiscard]] __device__ bool any(bool value) const { return __any_sync(0xffffffffu, value) != 0; }

  /// Loads four matrices of 8 × 8 16-bit elements. Lane 8i + r passes the address of row r of matrix i. Each lane gets
  /// in word i the elements 2(lane mod 4) and the next one of row lane / 4.
  __device__ void load_matrices(std::uint32_t (&words)[4], int offset) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address(offset))
                 : "memory");
  }
  /// Loads the same matrices transposed.
  __device__ void load_transposed(std::uint32_t (&words)[4], int offset) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address(offset))
                 : "memory");
  }

  /// Computes sum += a b, where a has 16 × 16 and b has 16 × 8 elements of T.
  template <class T>
  __device__ void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) const {
    if constexpr (std::is_same_v<T, bfloat16>) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
      static_assert(std::is_same_v<T, float16>);
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
  }

  /// Rounds two numbers to T and packs them into one word, the first in the low half.
  template <class T>
  [[nodiscard]] __device__ std::uint32_t pack(float low, float high) const {
    std::uint32_t word;
    if constexpr (std::is_same_v<T, bfloat16>) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    } else {
      static_assert(std::is_same_v<T, float16>);
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    }
    return word;
  }

  /// Returns 2 to the power of x, within two units in the last place; 0 for -infinity.
  [[nodiscard]] __device__ float exp2(float x) const {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }

 protected:
  [[nodiscard]] static __device__ unsigned char* shared() {
    extern __shared__ __align__(1024) unsigned char orrery_shared_memory[];  // the alignment of swizzled tiles
    return orrery_shared_memory;
  }
  [[nodiscard]] static __device__ unsigned address(int offset) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared())) + static_cast<unsigned>(offset);
  }
};

}  // namespace orrery::detail

#endif
