// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace orrery::detail {

/// What a kernel requires of a device.
struct device_needs {
  int compute_capability = 0;  ///< minimum, as major * 10 + minor
  int shared_bytes = 0;        ///< for each block
};

/// What a device provides.
struct device_limits {
  int device = 0;  ///< its ordinal
  int compute_capability = 0;
  int shared_bytes = 0;  ///< the maximum for one block

  /// "9.0"
  [[nodiscard]] std::string version() const { return version_of(compute_capability); }

  /// Throws `std::invalid_argument`, which names `kernel`, unless the device meets `needs`.
  void require(const std::string& kernel, const device_needs& needs) const {
    const std::string subject = "orrery: device " + std::to_string(device) + " has ";
    if (compute_capability < needs.compute_capability) {
      throw std::invalid_argument{subject + "compute capability " + version() + ", but kernel " + kernel + " needs " +
                                  version_of(needs.compute_capability) +
                                  " or newer; orrery::device_reference runs on every device"};
    }
    if (shared_bytes < needs.shared_bytes) {
      throw std::invalid_argument{subject + std::to_string(shared_bytes) +
                                  " bytes of shared memory for a block, but kernel " + kernel + " needs " +
                                  std::to_string(needs.shared_bytes) +
                                  " for these head dimensions; orrery::device_reference needs none"};
    }
  }

  /// Throws `std::invalid_argument` if `blocks` exceeds the largest grid.
  static void require_grid(std::int64_t blocks) {
    constexpr std::int64_t most = 0x7fffffff;
    if (blocks > most) {
      throw std::invalid_argument{"orrery: a kernel would need " + std::to_string(blocks) +
                                  " blocks, but a grid has at most " + std::to_string(most) +
                                  "; call it for fewer batches or heads at a time"};
    }
  }

 private:
  static std::string version_of(int capability) {
    return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
  }
};

}  // namespace orrery::detail
