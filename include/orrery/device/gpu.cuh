// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/device/code.hpp"

// Compilers other than nvcc see only the declaration of `gpu`: they compile kernels for another `Device`.
#ifdef __CUDACC__

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include <cuda.h>
#include <cuda_runtime.h>

#include "orrery/device/context.hpp"
#include "orrery/device/gpu_threads.cuh"
#include "orrery/device/gpu_warpgroup_threads.cuh"
#include "orrery/device/limits.hpp"
#include "orrery/device/query.hpp"
#include "orrery/device/tensor_map.hpp"

namespace orrery::detail {

/// The number of blocks of a body that a multiprocessor should hold at once, which limits their registers; 0: the
/// compiler decides.
template <class Body>
inline constexpr int blocks_at_once = 0;
template <class Body>
  requires requires { Body::blocks_at_once; }
inline constexpr int blocks_at_once<Body> = Body::blocks_at_once;

template <int threads, class Body>
__global__ void __launch_bounds__(threads, blocks_at_once<Body>) run_on_gpu(const __grid_constant__ Body body) {
  body(gpu_threads{});
}

/// Calls a body that uses warpgroups. One block for each multiprocessor, so that its warpgroups can exchange registers.
template <int threads, class Body>
__global__ void __launch_bounds__(threads, 1) run_on_gpu_by_warpgroups(const __grid_constant__ Body body) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if (gpu_warpgroup_threads::address(0) % 1024 != 0) __trap();  // the swizzle pattern assumes this alignment
  body(gpu_warpgroup_threads{});
#else
  __trap();  // never launched: see `gpu::has_warpgroups`
#endif
}

/// Has 2048 bytes of static shared memory if compiled for the target sm_90a, and none otherwise (1024, if the device's
/// own use is counted). So the host can find out which image of the program a device has loaded.
template <class = void>
__global__ void is_compiled_for_warpgroups([[maybe_unused]] int* never) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ volatile int mark[512];
  mark[threadIdx.x] = 1;
  if (never != nullptr) *never = mark[511 - threadIdx.x];
#endif
}

/// All kernels of the program that are launched by `gpu`. CUDA loads a kernel to a device at its first use, which can
/// wait for everything that runs there: for a kernel of NCCL that waits for a peer, even for ever. So all are loaded
/// when the first operator is made.
class program_kernels {
 public:
  /// Adds a kernel, before main, or when a library is loaded. Its value has no meaning.
  static bool add(const void* kernel) {
    list& all = get();
    const std::lock_guard lock{all.mutex};
    all.kernels.push_back(kernel);
    all.count.fetch_add(1, std::memory_order_release);
    return true;
  }
  [[nodiscard]] static std::size_t count() noexcept { return get().count.load(std::memory_order_acquire); }
  /// Loads all to the current device. A kernel that the device cannot run is left out: its launch says so.
  static void load() {
    list& all = get();
    const std::lock_guard lock{all.mutex};
    for (const void* kernel : all.kernels) {
      cudaFuncAttributes attributes{};
      if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) static_cast<void>(cudaGetLastError());
    }
  }

 private:
  struct list {
    std::mutex mutex;
    std::vector<const void*> kernels;
    std::atomic<std::size_t> count{0};
  };
  static list& get() {
    static list all;
    return all;
  }
};
/// Instantiated where a kernel is launched, which adds it.
template <auto kernel>
inline const bool is_in_program = program_kernels::add(reinterpret_cast<const void*>(kernel));

/// The current CUDA device.
struct gpu {
  /// Returns the limits of the device. Throws `device_error` if there is no device.
  [[nodiscard]] static device_limits limits() { return limits_of_current_device(); }

  /// Throws `device_error` if there is no device. Throws `std::invalid_argument` if it lacks what `kernel` needs, or if
  /// the program contains no code for it. The first time, loads all kernels of the program to it.
  static void require(const std::string& kernel, const device_needs& needs) {
    const device_limits has = limits();
    has.require(kernel, needs);
    static std::array<std::atomic<std::size_t>, 64> loaded{};  // by device: how many kernels
    std::atomic<std::size_t>& on_device = loaded[static_cast<std::size_t>(has.device) % loaded.size()];
    const std::size_t count = program_kernels::count();
    if (on_device.load(std::memory_order_relaxed) == count + 1) return;
    static_cast<void>(require_code(kernel, has, reinterpret_cast<const void*>(is_compiled_for_warpgroups<void>)));
    program_kernels::load();
    on_device.store(count + 1, std::memory_order_relaxed);
  }

  /// Returns true if kernels that use `gpu_warpgroup_threads` and this much shared memory can run. They need compute
  /// capability 9.0, a program compiled for the target sm_90a (90a in CMAKE_CUDA_ARCHITECTURES), and a driver that
  /// supports tensor maps.
  [[nodiscard]] static bool has_warpgroups(int shared_bytes) {
    const device_limits has = limits();
    if (has.compute_capability != 90 || has.shared_bytes < shared_bytes) return false;
    // All devices of this capability load the same image.
    static const bool compiled = [] {
      cudaFuncAttributes attributes{};
      check_cuda(cudaFuncGetAttributes(&attributes, is_compiled_for_warpgroups<void>), "cudaFuncGetAttributes");
      return attributes.sharedSizeBytes >= 2048;
    }();
    return compiled && encoder() != nullptr;
  }

  /// Makes the map by which the device reads a box of a tensor. A box without elements has an empty map. Throws
  /// `device_error` if the driver rejects a box that `has_map`. Uses no device time; may be called while a graph is
  /// captured.
  [[nodiscard]] static tensor_map map(const tensor_box& box) {
    tensor_map result;
    if (box.is_empty()) return result;
    static_assert(sizeof(CUtensorMap) == sizeof(tensor_map) && alignof(CUtensorMap) <= alignof(tensor_map));
    std::array<cuuint64_t, 4> extent{};
    std::array<cuuint64_t, 3> stride{};
    for (std::size_t i = 0; i < 4; ++i) extent[i] = static_cast<cuuint64_t>(box.extent[i]);
    for (std::size_t i = 0; i < 3; ++i) stride[i] = static_cast<cuuint64_t>(box.stride_bytes[i]);
    const std::array<cuuint32_t, 4> shape{tensor_box::columns, static_cast<cuuint32_t>(box.rows), 1, 1};
    const std::array<cuuint32_t, 4> step{1, 1, 1, 1};
    // Both 16-bit types are copied as integers. Elements out of bounds are filled with zeros, which is 0 in both types.
    const CUresult code = encoder()(reinterpret_cast<CUtensorMap*>(&result), CU_TENSOR_MAP_DATA_TYPE_UINT16, 4,
                                    const_cast<void*>(box.data), extent.data(), stride.data(), shape.data(),
                                    step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    check_cuda(code == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
    return result;
  }

  /// Enqueues body(threads) for each thread of each block. Throws `device_error` if the launch fails.
  template <int threads, class Body>
  static void launch(const device_context& context, std::int64_t blocks, int shared_bytes, const Body& body) {
    static_assert(threads % 32 == 0 && threads <= 1024);
    static_cast<void>(is_in_program<run_on_gpu<threads, Body>>);
    enqueue(run_on_gpu<threads, Body>, context, blocks, threads, shared_bytes, body);
  }
  /// Enqueues a body that is called with `gpu_warpgroup_threads`, on a device that `has_warpgroups`.
  template <int threads, class Body>
  static void launch_warpgroups(const device_context& context, std::int64_t blocks, int shared_bytes,
                                const Body& body) {
    static_assert(threads % 128 == 0 && threads <= 1024);
    static_cast<void>(is_in_program<run_on_gpu_by_warpgroups<threads, Body>>);
    enqueue(run_on_gpu_by_warpgroups<threads, Body>, context, blocks, threads, shared_bytes, body);
  }

 private:
  template <class Body>
  static void enqueue(void (*kernel)(Body), const device_context& context, std::int64_t blocks, int threads,
                      int shared_bytes, const Body& body) {
    static_assert(std::is_trivially_copyable_v<Body> && sizeof(Body) <= 4096, "a launch's arguments are copied");
    if (blocks == 0) return;
    device_limits::require_grid(blocks);
    if (shared_bytes > 48 * 1024) {
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
                 "cudaFuncSetAttribute");
    }
    // Not by <<<>>>, which reports failure only as the thread's last error, and that may be of an unrelated call.
    void* arguments[] = {const_cast<Body*>(&body)};
    check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                                dim3(static_cast<unsigned>(threads)), arguments, static_cast<std::size_t>(shared_bytes),
                                context.stream),
               "cudaLaunchKernel");
  }

  /// Finds the function of the driver, so that programs need not link with the driver; null if the driver does not have
  /// it.
  static decltype(&cuTensorMapEncodeTiled) encoder() {
    static const auto found = [] {
      void* function = nullptr;
      cudaDriverEntryPointQueryResult result{};
      const cudaError_t code =
          cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
      if (code != cudaSuccess || result != cudaDriverEntryPointSuccess) {
        static_cast<void>(cudaGetLastError());
        function = nullptr;
      }
      return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    }();
    return found;
  }
};

}  // namespace orrery::detail

#endif
