// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "orrery/device/context.hpp"
#include "orrery/device/limits.hpp"
#include "orrery/device/tensor_map.hpp"

#include "device/emulator.hpp"
#include "device/emulator_warpgroup.hpp"
#include "device/enqueued.hpp"

namespace cuda_test {

/// An emulated device that runs its kernels when their stream comes to them.
struct streamed_device {
  static void require(const std::string& kernel, const orrery::detail::device_needs& needs) {
    emulator::device::require(kernel, needs);
  }
  template <int threads, class Body>
  static void launch(const orrery::device_context& context, std::int64_t blocks, int shared_bytes, const Body& body) {
    enqueued_work::enqueue(context, {"a kernel", {}, {}},
                           [=] { emulator::device::launch<threads>(context, blocks, shared_bytes, body); });
  }

  [[nodiscard]] static bool has_warpgroups(int shared_bytes) {
    return emulator::warpgroup_device::has_warpgroups(shared_bytes);
  }
  [[nodiscard]] static orrery::detail::tensor_map map(const orrery::detail::tensor_box& box) {
    return emulator::warpgroup_device::map(box);
  }
  template <int threads, class Body>
  static void launch_warpgroups(const orrery::device_context& context, std::int64_t blocks, int shared_bytes,
                                const Body& body) {
    enqueued_work::enqueue(context, {"a kernel of warpgroups", {}, {}}, [=] {
      emulator::warpgroup_device::launch_warpgroups<threads>(context, blocks, shared_bytes, body);
    });
  }
};

}  // namespace cuda_test
