// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "orrery/kernel/device_context.hpp"
#include "orrery/kernel/device_limits.hpp"

#include "cuda/emulator.hpp"
#include "cuda/enqueued.hpp"

namespace cuda_test {

/// An emulated device that runs its kernels when their stream comes to them.
struct streamed_device {
  static void require(const std::string& kernel, const orrery::device_needs& needs) {
    emulator::device::require(kernel, needs);
  }
  template <int threads, class Body>
  static void launch(const orrery::device_context& context, std::int64_t blocks, int shared_bytes, const Body& body) {
    cuda_test::enqueued_work::enqueue(context, {"a kernel", {}, {}},
                                      [=] { emulator::device::launch<threads>(context, blocks, shared_bytes, body); });
  }
};

}  // namespace cuda_test
