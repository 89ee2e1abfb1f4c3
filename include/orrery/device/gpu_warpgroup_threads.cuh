// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/device/gpu_threads.cuh"

#ifdef __CUDACC__

#include <cstdint>
#include <type_traits>

#include "orrery/device/code.hpp"
#include "orrery/device/tensor_map.hpp"
#include "orrery/tensor/float16.hpp"

namespace orrery::detail {

/// The additional operations of a thread on a GPU of compute capability 9.0: PTX for the target sm_90a. A warpgroup is
/// four consecutive warps, the first with an index divisible by 4. All threads of a warpgroup must call its operations.
/// Names in quotation marks are sections of the PTX ISA.
///
/// Two proxies access shared memory ("Proxies"): the generic one, by which threads load and store, and the asynchronous
/// one, by which tensor copies and warpgroup products do. What threads have written is visible to the asynchronous
/// proxy only after `fence_async_proxy` by the threads that wrote it, and a barrier.
struct gpu_warpgroup_threads : gpu_threads {
  /// Returns the address of byte `offset` of the block's shared memory in the shared window.
  [[nodiscard]] static __device__ unsigned address(int offset) { return gpu_threads::address(offset); }

  /// Returns the value of the warp's first lane, which the compiler then knows to be uniform.
  [[nodiscard]] __device__ int uniform(int value) const { return __shfl_sync(0xffffffffu, value, 0); }

  // ---- mbarriers ("mbarrier"): eight bytes of shared memory. A phase completes when the number of arrivals given at
  // initialisation, and the bytes that they expect, have arrived. A thread that has waited sees everything done before
  // the arrivals.

  /// Initialises an mbarrier. Called by one thread; others use it after `fence_async_proxy` and a barrier.
  __device__ void mbarrier_init(int mbarrier, int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(mbarrier)), "r"(arrivals) : "memory");
  }
  __device__ void mbarrier_arrive(int mbarrier) const {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(mbarrier)) : "memory");
  }
  /// Arrives, and makes the phase wait for `bytes` more bytes of copies.
  __device__ void mbarrier_arrive_expecting(int mbarrier, int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(mbarrier)), "r"(bytes)
                 : "memory");
  }
  /// Waits until the phase of this parity is complete. That is the current phase, or the previous one, which is
  /// complete already. The first phase has parity 0.
  __device__ void mbarrier_wait(int mbarrier, int parity) const {
    unsigned over = 0;
    do {
      asm volatile(
          "{\n.reg .pred over;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
          "selp.u32 %0, 1, 0, over;\n}"
          : "=r"(over)
          : "r"(address(mbarrier)), "r"(parity)
          : "memory");
    } while (over == 0);
  }

  // ---- named barriers ("bar", "barrier"; numbers 1 to 15; 0 is `barrier`) of `threads`, a multiple of 32

  __device__ void named_barrier_sync(int number, int threads) const {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
  }
  __device__ void named_barrier_arrive(int number, int threads) const {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
  }

  // ---- memory

  /// Makes what this thread has written to shared memory visible to the asynchronous proxy ("membar", "fence.proxy").
  __device__ void fence_async_proxy() const { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

  /// Starts to copy a box of a tensor (see `tensor_box`), whose first element has these coordinates, to shared memory
  /// at `to`, a multiple of 1024, swizzled ("cp.async.bulk.tensor"). When it has arrived, all its bytes, including
  /// those beyond the tensor, count in the phase of the mbarrier.
  __device__ void copy_tensor(int to, const tensor_map& map, const int (&coordinates)[4], int mbarrier) const {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(address(to)),
        "l"(&map), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]), "r"(coordinates[3]),
        "r"(address(mbarrier))
        : "memory");
  }

  // ---- products of a warpgroup ("Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions"): sums of 64
  // rows. Warp w of the four has rows 16w to 16w + 15 as fragments of mma.m16n8k16, four words for each 8 columns
  // ("Matrix Fragments for wgmma.mma_async.m64nNk16"). Products run asynchronously.

  /// Makes registers that the warpgroup has written visible to the products that follow. Needed before the first
  /// product, and again after anything but products has accessed their sums or operands.
  __device__ void fence_products() const { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
  /// Makes a group of the products started since the last group.
  __device__ void commit_products() const { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
  /// Waits until all but the last `pending` groups of the warpgroup are done.
  template <int pending>
  __device__ void wait_for_products() const {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
  }
  /// Prevents the compiler from moving uses of these registers across this point. Call it for the sums of a product,
  /// and for its operands in registers, before `fence_products` and after the wait.
  template <int column_tiles>
  __device__ void hold(float (&sums)[column_tiles][4]) const {
    ORRERY_UNROLL
    for (int n = 0; n < column_tiles; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums[n][i])::"memory");
    }
  }
  template <int steps>
  __device__ void hold(std::uint32_t (&operands)[steps][4]) const {
    ORRERY_UNROLL
    for (int k = 0; k < steps; ++k) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(operands[k][i])::"memory");
    }
  }
  /// As `hold`, for sums that the next product overwrites: their values are not needed, and not kept in registers until
  /// then.
  template <int column_tiles>
  __device__ void discard(float (&sums)[column_tiles][4]) const {
    ORRERY_UNROLL
    for (int n = 0; n < column_tiles; ++n) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) asm volatile("" : "=f"(sums[n][i])::"memory");
    }
  }

  /// Starts sums = a bᵀ, or sums += a bᵀ if `accumulates`, of 8 `column_tiles` columns. The inner dimension has 16
  /// elements, contiguous in each row of a and b, as their matrix descriptors say ("K-major").
  template <class T, int column_tiles>
  __device__ void multiply(float (&sums)[column_tiles][4], std::uint64_t a, std::uint64_t b, bool accumulates) const {
    product_of_shared<T, 8 * column_tiles>(sums, a, b, accumulates ? 1 : 0);
  }
  /// Starts sums += a b for the 8 `count` columns from column tile `first` on. The 16 columns of a are in registers, as
  /// fragments of mma.m16n8k16. The 16 rows of b are in shared memory; its matrix descriptor says that the elements of
  /// a row are contiguous ("MN-major").
  using gpu_threads::multiply_add;  // a warp's
  template <class T, int first, int count, int column_tiles>
  __device__ void multiply_add(float (&sums)[column_tiles][4], const std::uint32_t (&a)[4], std::uint64_t b) const {
    static_assert(first + count <= column_tiles);
    product_of_registers<T, 8 * count>(sums + first, a, b);
  }

  // ---- registers ("setmaxnreg"): the number that each thread of the warpgroup has from now on, a multiple of 8

  template <int count>
  __device__ void give_registers_back() const {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
  }
  template <int count>
  __device__ void take_registers() const {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
  }

 private:
  template <class T, int n>
  static __device__ void product_of_shared(float (*to)[4], std::uint64_t a, std::uint64_t b, int accumulates) {
    if constexpr (std::is_same_v<T, bfloat16> && n == 64) {
      asm volatile(
          "{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, %34, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "%32, %33, accumulates, 1, 1, 0, 0;\n}\n"
          : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]),
            "+f"(to[1][2]), "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]),
            "+f"(to[3][0]), "+f"(to[3][1]), "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]),
            "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]), "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]),
            "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]), "+f"(to[7][0]), "+f"(to[7][1]),
            "+f"(to[7][2]), "+f"(to[7][3])
          : "l"(a), "l"(b), "r"(accumulates));
    } else if constexpr (std::is_same_v<T, bfloat16> && n == 128) {
      asm volatile(
          "{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, %66, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
          "%64, %65, accumulates, 1, 1, 0, 0;\n}\n"
          : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]),
            "+f"(to[1][2]), "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]),
            "+f"(to[3][0]), "+f"(to[3][1]), "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]),
            "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]), "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]),
            "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]), "+f"(to[7][0]), "+f"(to[7][1]),
            "+f"(to[7][2]), "+f"(to[7][3]), "+f"(to[8][0]), "+f"(to[8][1]), "+f"(to[8][2]), "+f"(to[8][3]),
            "+f"(to[9][0]), "+f"(to[9][1]), "+f"(to[9][2]), "+f"(to[9][3]), "+f"(to[10][0]), "+f"(to[10][1]),
            "+f"(to[10][2]), "+f"(to[10][3]), "+f"(to[11][0]), "+f"(to[11][1]), "+f"(to[11][2]), "+f"(to[11][3]),
            "+f"(to[12][0]), "+f"(to[12][1]), "+f"(to[12][2]), "+f"(to[12][3]), "+f"(to[13][0]), "+f"(to[13][1]),
            "+f"(to[13][2]), "+f"(to[13][3]), "+f"(to[14][0]), "+f"(to[14][1]), "+f"(to[14][2]), "+f"(to[14][3]),
            "+f"(to[15][0]), "+f"(to[15][1]), "+f"(to[15][2]), "+f"(to[15][3])
          : "l"(a), "l"(b), "r"(accumulates));
    } else if constexpr (std::is_same_v<T, float16> && n == 64) {
      asm volatile(
          "{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, %34, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "%32, %33, accumulates, 1, 1, 0, 0;\n}\n"
          : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]),
            "+f"(to[1][2]), "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]),
            "+f"(to[3][0]), "+f"(to[3][1]), "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]),
            "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]), "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]),
            "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]), "+f"(to[7][0]), "+f"(to[7][1]),
            "+f"(to[7][2]), "+f"(to[7][3])
          : "l"(a), "l"(b), "r"(accumulates));
    } else if constexpr (std::is_same_v<T, float16> && n == 128) {
      asm volatile(
          "{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, %66, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
          "%64, %65, accumulates, 1, 1, 0, 0;\n}\n"
          : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]),
            "+f"(to[1][2]), "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]),
            "+f"(to[3][0]), "+f"(to[3][1]), "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]),
            "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]), "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]),
            "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]), "+f"(to[7][0]), "+f"(to[7][1]),
            "+f"(to[7][2]), "+f"(to[7][3]), "+f"(to[8][0]), "+f"(to[8][1]), "+f"(to[8][2]), "+f"(to[8][3]),
            "+f"(to[9][0]), "+f"(to[9][1]), "+f"(to[9][2]), "+f"(to[9][3]), "+f"(to[10][0]), "+f"(to[10][1]),
            "+f"(to[10][2]), "+f"(to[10][3]), "+f"(to[11][0]), "+f"(to[11][1]), "+f"(to[11][2]), "+f"(to[11][3]),
            "+f"(to[12][0]), "+f"(to[12][1]), "+f"(to[12][2]), "+f"(to[12][3]), "+f"(to[13][0]), "+f"(to[13][1]),
            "+f"(to[13][2]), "+f"(to[13][3]), "+f"(to[14][0]), "+f"(to[14][1]), "+f"(to[14][2]), "+f"(to[14][3]),
            "+f"(to[15][0]), "+f"(to[15][1]), "+f"(to[15][2]), "+f"(to[15][3])
          : "l"(a), "l"(b), "r"(accumulates));
    } else {
      static_assert(n == 0, "this product is not written yet");
    }
  }

  template <class T, int n>
  static __device__ void product_of_registers(float (*to)[4], const std::uint32_t (&a)[4], std::uint64_t b) {
    if constexpr (std::is_same_v<T, bfloat16> && n == 64) {
      asm volatile(
          "{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, %37, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "{%32, %33, %34, %35}, %36, accumulates, 1, 1, 1;\n}\n"
          : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]),
            "+f"(to[1][2]), "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]),
            "+f"(to[3][0]), "+f"(to[3][1]), "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]),
            "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]), "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]),
            "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]), "+f"(to[7][0]), "+f"(to[7][1]),
            "+f"(to[7][2]), "+f"(to[7][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    } else if constexpr (std::is_same_v<T, bfloat16> && n == 96) {
      asm volatile(
          "{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, %53, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
          "{%48, %49, %50, %51}, %52, accumulates, 1, 1, 1;\n}\n"
          : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]),
            "+f"(to[1][2]), "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]),
            "+f"(to[3][0]), "+f"(to[3][1]), "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]),
            "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]), "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]),
            "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]), "+f"(to[7][0]), "+f"(to[7][1]),
            "+f"(to[7][2]), "+f"(to[7][3]), "+f"(to[8][0]), "+f"(to[8][1]), "+f"(to[8][2]), "+f"(to[8][3]),
            "+f"(to[9][0]), "+f"(to[9][1]), "+f"(to[9][2]), "+f"(to[9][3]), "+f"(to[10][0]), "+f"(to[10][1]),
            "+f"(to[10][2]), "+f"(to[10][3]), "+f"(to[11][0]), "+f"(to[11][1]), "+f"(to[11][2]), "+f"(to[11][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    } else if constexpr (std::is_same_v<T, bfloat16> && n == 128) {
      asm volatile(
          "{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, %69, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
          "{%64, %65, %66, %67}, %68, accumulates, 1, 1, 1;\n}\n"
          : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]),
            "+f"(to[1][2]), "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]),
            "+f"(to[3][0]), "+f"(to[3][1]), "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]),
            "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]), "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]),
            "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]), "+f"(to[7][0]), "+f"(to[7][1]),
            "+f"(to[7][2]), "+f"(to[7][3]), "+f"(to[8][0]), "+f"(to[8][1]), "+f"(to[8][2]), "+f"(to[8][3]),
            "+f"(to[9][0]), "+f"(to[9][1]), "+f"(to[9][2]), "+f"(to[9][3]), "+f"(to[10][0]), "+f"(to[10][1]),
            "+f"(to[10][2]), "+f"(to[10][3]), "+f"(to[11][0]), "+f"(to[11][1]), "+f"(to[11][2]), "+f"(to[11][3]),
            "+f"(to[12][0]), "+f"(to[12][1]), "+f"(to[12][2]), "+f"(to[12][3]), "+f"(to[13][0]), "+f"(to[13][1]),
            "+f"(to[13][2]), "+f"(to[13][3]), "+f"(to[14][0]), "+f"(to[14][1]), "+f"(to[14][2]), "+f"(to[14][3]),
            "+f"(to[15][0]), "+f"(to[15][1]), "+f"(to[15][2]), "+f"(to[15][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    } else if constexpr (std::is_same_v<T, float16> && n == 64) {
      asm volatile(
          "{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, %37, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "{%32, %33, %34, %35}, %36, accumulates, 1, 1, 1;\n}\n"
          : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]),
            "+f"(to[1][2]), "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]),
            "+f"(to[3][0]), "+f"(to[3][1]), "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]),
            "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]), "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]),
            "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]), "+f"(to[7][0]), "+f"(to[7][1]),
            "+f"(to[7][2]), "+f"(to[7][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    } else if constexpr (std::is_same_v<T, float16> && n == 96) {
      asm volatile(
          "{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, %53, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
          "{%48, %49, %50, %51}, %52, accumulates, 1, 1, 1;\n}\n"
          : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]),
            "+f"(to[1][2]), "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]),
            "+f"(to[3][0]), "+f"(to[3][1]), "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]),
            "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]), "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]),
            "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]), "+f"(to[7][0]), "+f"(to[7][1]),
            "+f"(to[7][2]), "+f"(to[7][3]), "+f"(to[8][0]), "+f"(to[8][1]), "+f"(to[8][2]), "+f"(to[8][3]),
            "+f"(to[9][0]), "+f"(to[9][1]), "+f"(to[9][2]), "+f"(to[9][3]), "+f"(to[10][0]), "+f"(to[10][1]),
            "+f"(to[10][2]), "+f"(to[10][3]), "+f"(to[11][0]), "+f"(to[11][1]), "+f"(to[11][2]), "+f"(to[11][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    } else if constexpr (std::is_same_v<T, float16> && n == 128) {
      asm volatile(
          "{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, %69, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
          "{%64, %65, %66, %67}, %68, accumulates, 1, 1, 1;\n}\n"
          : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]),
            "+f"(to[1][2]), "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]),
            "+f"(to[3][0]), "+f"(to[3][1]), "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]),
            "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]), "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]),
            "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]), "+f"(to[7][0]), "+f"(to[7][1]),
            "+f"(to[7][2]), "+f"(to[7][3]), "+f"(to[8][0]), "+f"(to[8][1]), "+f"(to[8][2]), "+f"(to[8][3]),
            "+f"(to[9][0]), "+f"(to[9][1]), "+f"(to[9][2]), "+f"(to[9][3]), "+f"(to[10][0]), "+f"(to[10][1]),
            "+f"(to[10][2]), "+f"(to[10][3]), "+f"(to[11][0]), "+f"(to[11][1]), "+f"(to[11][2]), "+f"(to[11][3]),
            "+f"(to[12][0]), "+f"(to[12][1]), "+f"(to[12][2]), "+f"(to[12][3]), "+f"(to[13][0]), "+f"(to[13][1]),
            "+f"(to[13][2]), "+f"(to[13][3]), "+f"(to[14][0]), "+f"(to[14][1]), "+f"(to[14][2]), "+f"(to[14][3]),
            "+f"(to[15][0]), "+f"(to[15][1]), "+f"(to[15][2]), "+f"(to[15][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    } else {
      static_assert(n == 0, "this product is not written yet");
    }
  }
};

}  // namespace orrery::detail

#endif
