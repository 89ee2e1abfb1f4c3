// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "orrery/device/handles.hpp"
#include "orrery/kernel/device_flash.cuh"
#include "orrery/layout/layout.hpp"

#include "ceilings.cuh"
#include "kernels.cuh"
#include "movement.cuh"
#include "operators.cuh"
#include "report.hpp"
#include "sizes.hpp"

namespace bench {

/// What can be measured, by name.
inline const std::vector<std::string>& gpu_sections() {
  static const std::vector<std::string> all{"kernel", "movement", "operator", "host"};
  return all;
}

/// The sections of a list with commas. Throws `std::invalid_argument` for one that there is not.
inline std::vector<std::string> sections_named(const std::string& list) {
  std::vector<std::string> named;
  std::string known;
  for (const std::string& one : gpu_sections()) known += (known.empty() ? "" : ", ") + one;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = list.find(',', begin) == std::string::npos ? list.size() : list.find(',', begin);
    named.push_back(list.substr(begin, end - begin));
    bool found = false;
    for (const std::string& one : gpu_sections()) found = found || one == named.back();
    if (!found) throw std::invalid_argument{"--only names \"" + named.back() + "\", expected some of " + known};
    begin = end + 1;
  }
  return named;
}

/// Measures the device's ceilings and then the sections named.
template <class Device>
void measure_gpu(report& to, const gpu_sizes& sizes, const std::vector<std::string>& sections) {
  using flash = orrery::device_flash<orrery::bfloat16, 128, Device>;
  const orrery::detail::cuda_stream stream;
  const ceilings most = measure_ceilings<Device>(to, sizes, stream.get());
  const auto both_masks = [&]<class Kernel>(std::type_identity<Kernel>) {
    measure_kernel<Kernel, Device>(to, sizes, most, stream.get(), orrery::full{});
    measure_kernel<Kernel, Device>(to, sizes, most, stream.get(), orrery::causal{});
  };
  for (const std::string& section : sections) {
    if (section == "kernel") {
      both_masks(std::type_identity<flash>{});  // another kernel is another line
      if constexpr (std::is_same_v<Device, orrery::detail::gpu>) {
        using by_warpgroups = orrery::device_flash<orrery::bfloat16, 128, Device, orrery::device_instructions::wgmma>;
        if (Device::has_warpgroups(0)) {
          both_masks(std::type_identity<by_warpgroups>{});
          both_masks(std::type_identity<flash_without_overlap<Device>>{});
        }
      }
    } else if (section == "movement") {
      measure_movement<Device>(to, sizes, most, stream.get());
    } else if (section == "operator") {
      measure_operator<flash>(to, sizes, orrery::causal{}, orrery::zigzag{});
      measure_operator<flash>(to, sizes, orrery::full{}, orrery::contiguous{});
    } else if (section == "host") {
      measure_enqueuing<flash>(to, sizes);
    }
  }
}

}  // namespace bench
