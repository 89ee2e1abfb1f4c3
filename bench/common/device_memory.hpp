// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <cuda_runtime_api.h>

#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"

#include "common/problem.hpp"

namespace bench {

/// As `filled_memory`, of a device.
template <class T>
class filled_device_memory : public orrery::detail::device_memory {
 public:
  filled_device_memory() = default;
  explicit filled_device_memory(std::int64_t bytes) : device_memory{bytes} {
    constexpr std::int64_t part = std::int64_t{1} << 20;
    std::vector<T> some;
    for (std::int64_t i = 0; i < part / static_cast<std::int64_t>(sizeof(T)); ++i)
      some.push_back(static_cast<T>(value_at(5, i)));
    for (std::int64_t first = 0; first < bytes; first += part) {
      const auto size = static_cast<std::size_t>((std::min)(part, bytes - first));
      orrery::detail::check_cuda(cudaMemcpy(data() + first, some.data(), size, cudaMemcpyHostToDevice), "cudaMemcpy");
    }
  }
};

}  // namespace bench
