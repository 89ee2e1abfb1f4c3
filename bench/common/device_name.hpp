// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <cuda_runtime_api.h>

#include "orrery/device/context.hpp"

namespace bench {

/// A device's name and size, and the versions of the driver and the runtime, in words.
inline std::string device_name(int device) {
  cudaDeviceProp properties{};
  int driver = 0;
  int runtime = 0;
  orrery::detail::check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  orrery::detail::check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  orrery::detail::check_cuda(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  const auto version = [](int of) { return std::to_string(of / 1000) + "." + std::to_string(of % 1000 / 10); };
  return std::string{properties.name} + " (compute capability " + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ", " + std::to_string(properties.multiProcessorCount) +
         " multiprocessors, " + std::to_string(properties.totalGlobalMem >> 30) + " GiB; CUDA driver " +
         version(driver) + ", runtime " + version(runtime) + ")";
}

}  // namespace bench
