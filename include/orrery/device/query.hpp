// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <stdexcept>
#include <string>

#include <cuda_runtime_api.h>

#include "orrery/device/context.hpp"
#include "orrery/device/limits.hpp"

namespace orrery::detail {

/// Returns the limits of the current device. Throws `device_error` if there is no device.
[[nodiscard]] inline device_limits limits_of_current_device() {
  device_limits limits;
  check_cuda(cudaGetDevice(&limits.device), "cudaGetDevice");
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, limits.device), "cudaDeviceGetAttribute");
    return value;
  };
  limits.compute_capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  limits.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return limits;
}

/// Returns true if kernels and copies of one device can read the memory of another. Throws `device_error`.
[[nodiscard]] inline bool can_access(int device, int memory_of) {
  if (device == memory_of) return true;
  int can = 0;
  check_cuda(cudaDeviceCanAccessPeer(&can, device, memory_of), "cudaDeviceCanAccessPeer");
  return can != 0;
}

/// Returns the attributes of `function`, one of the program's kernels, on the current device, whose limits are `has`.
/// Throws `std::invalid_argument`, which names `kernel`, if the program contains no code that the device can run, and
/// `device_error` if CUDA fails otherwise. May load the program's code to the device.
inline cudaFuncAttributes require_code(const std::string& kernel, const device_limits& has, const void* function) {
  cudaFuncAttributes attributes{};
  const cudaError_t code = cudaFuncGetAttributes(&attributes, function);
  switch (code) {
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidKernelImage:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      break;
    default:
      check_cuda(code, "cudaFuncGetAttributes");
      return attributes;
  }
  static_cast<void>(cudaGetLastError());
  throw std::invalid_argument{"orrery: device " + std::to_string(has.device) + " has compute capability " +
                              has.version() + ", for which the program holds no code of kernel " + kernel +
                              " (cudaFuncGetAttributes: " + cudaGetErrorName(code) + "); add " +
                              std::to_string(has.compute_capability) + " to CMAKE_CUDA_ARCHITECTURES"};
}

}  // namespace orrery::detail
