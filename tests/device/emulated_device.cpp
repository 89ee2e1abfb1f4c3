// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The device's own kernels, on the emulator of its threads, as streams of the runtime double run them: operators over
// the transport `device` as they are on a GPU, but for the hardware.
#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include "orrery/kernel/device_flash.cuh"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/layout/layout.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/transport/device.hpp"

#include "device/emulator.hpp"
#include "device/enqueued.hpp"
#include "device/runtime_double.hpp"
#include "device/streamed_device.hpp"
#include "kernel/cuda/flash_conformance.hpp"
#include "support/any.hpp"
#include "transport/device/conformance.hpp"

namespace {

using cuda_test::streamed_device;

template <class Kernel>
void check(int world) {
  std::uint64_t seed = 0;
  for (const orrery::any_topology& topology : any::topologies()) {
    if (topology.unsupported_reason(world, orrery::pass::forward) != nullptr) continue;
    cuda_double::reset({.seed = ++seed});
    const auto on_devices = [](int ranks, auto&& body) { orrery::device::run(ranks, body); };
    INFO(topology.name(), " over ", world);
    CHECK(cuda_test::failures<orrery::any_topology, Kernel, orrery::device::world>(
              on_devices, world, {.length = 13, .query_heads = 4, .key_heads = 2, .head_dim = 8}, orrery::causal{},
              orrery::zigzag{}, seed, topology) == "");
    cuda_test::enqueued_work::forget();
    CHECK(cuda_double::faults().empty());
    CHECK(cuda_double::leaks() == "");
  }
}

}  // namespace

TEST_CASE("results of emulated kernels") {
  check<orrery::device_reference<double, streamed_device>>(4);
  check<orrery::device_reference<orrery::bfloat16, streamed_device>>(3);
  check<orrery::device_flash<orrery::bfloat16, 64, streamed_device>>(2);
  emulator::counted.products = 0;
  check<orrery::device_flash<orrery::bfloat16, 64, streamed_device, orrery::device_instructions::wgmma>>(2);
  CHECK(emulator::counted.products > 0);
}

TEST_CASE_TEMPLATE("masks, layouts and topologies with the emulated tensor-core kernel", T, orrery::bfloat16,
                   orrery::float16) {
  using kind = cuda_test::any_mask::kind;
  cuda_double::reset({.seed = sizeof(T)});
  cuda_test::check_flash_over<T, streamed_device>({2}, {orrery::ring{}, orrery::ulysses{}},
                                                  {{kind::causal}, {kind::holes}}, {orrery::zigzag{}},
                                                  {{.length = 13, .query_heads = 2, .key_heads = 1, .head_dim = 8}});
  cuda_test::enqueued_work::forget();
  CHECK(cuda_double::faults().empty());
  CHECK(cuda_double::leaks() == "");
}
