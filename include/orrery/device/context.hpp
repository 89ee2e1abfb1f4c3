// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <stdexcept>
#include <string>

#include <cuda_runtime_api.h>

#include "orrery/detail/source_place.hpp"

namespace orrery {

/// What a device transport passes to a kernel: the stream that everything is enqueued on. The stream's device must be
/// the current one. Kernels neither wait nor allocate, so that a call can be captured into a graph.
struct device_context {
  cudaStream_t stream = nullptr;
};

/// Thrown if a CUDA call fails. `what()` names the call, its place in the source and CUDA's own error text.
///
/// CUDA reports the fault of a kernel at a later call, and then at every call. The message says so if the error code is
/// one of those from which a process cannot recover.
class device_error : public std::runtime_error {
 public:
  device_error(cudaError_t code, const std::string& message) : std::runtime_error{message}, code_{code} {}
  [[nodiscard]] cudaError_t code() const noexcept { return code_; }

 private:
  cudaError_t code_;
};

}  // namespace orrery

namespace orrery::detail {

/// Returns true if this code means that the device's context is lost, so that every later call of the process fails.
[[nodiscard]] constexpr bool is_sticky(cudaError_t code) noexcept {
  switch (code) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
      return true;
    default:
      return false;
  }
}

/// Throws `device_error` unless `code`, the result of `call`, is cudaSuccess.
inline void check_cuda(cudaError_t code, const char* call, const source_place& place = source_place::current()) {
  if (code == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // so that a thread that continues does not see the error at its next launch
  std::string message = std::string{"orrery: "} + call + " in " + place.file + ":" + std::to_string(place.line) +
                        " failed: " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")";
  if (is_sticky(code)) {
    message +=
        "; the fault is this call's or that of work enqueued before it, and the device cannot be used in this process "
        "any more: run with CUDA_LAUNCH_BLOCKING=1, or under compute-sanitizer, to see where it happened";
  } else if (code == cudaErrorNoDevice || code == cudaErrorInsufficientDriver) {
    message +=
        "; a CUDA device and a driver as new as the toolkit are needed, or a kernel for the host, as "
        "orrery::flash, over the transport threads or mpi";
  } else if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorUnsupportedPtxVersion) {
    message += "; the program is compiled for other devices: add this one's to CMAKE_CUDA_ARCHITECTURES";
  }
  throw device_error{code, message};
}

}  // namespace orrery::detail
