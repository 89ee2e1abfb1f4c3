// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Masks with tables, which plans copy to the device: operators over the transport `device` with the device's own
// kernels, on the emulator of its threads.
#include <array>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention/planned_mask.hpp"
#include "orrery/device/handles.hpp"
#include "orrery/kernel/device_flash.cuh"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/intervals.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/device.hpp"

#include "device/emulator.hpp"
#include "device/enqueued.hpp"
#include "device/runtime_double.hpp"
#include "device/streamed_device.hpp"
#include "transport/device/conformance.hpp"

namespace {

using cuda_test::streamed_device;
using orrery::causal;
using orrery::documents;
using orrery::intervals;
using orrery::window;

using packed = decltype(documents{std::array{1}} & causal{} & window{});
static_assert(orrery::mask_with_table<packed> && orrery::mask_with_table<intervals>);
static_assert(orrery::mask_with_table<decltype(documents{std::array{1}} & intervals{std::array{1}, std::array{1}})>);
static_assert(!orrery::mask_with_table<causal> && orrery::detail::is_mask_for_devices<causal>());
static_assert(!std::is_trivially_copyable_v<packed> && orrery::detail::is_mask_for_devices<packed>());
static_assert(std::is_same_v<orrery::detail::planned_mask<packed, orrery::detail::host_memory>, packed>);
static_assert(!std::is_same_v<orrery::detail::planned_mask<packed, orrery::detail::device_memory>, packed>);

template <class Kernel, class Mask>
void check(const Mask& mask, int world) {
  static std::uint64_t seed = 0;
  cuda_double::reset({.seed = ++seed});
  const auto on_devices = [](int ranks, auto&& body) { orrery::device::run(ranks, body); };
  INFO(Kernel::name(), ", ", mask.name());
  CHECK(cuda_test::failures<orrery::any_topology, Kernel, orrery::device::world>(
            on_devices, world, {.length = 21, .query_heads = 2, .key_heads = 1, .head_dim = 8}, mask, orrery::zigzag{},
            seed, orrery::any_topology{orrery::ring{}}) == "");
  cuda_test::enqueued_work::forget();
  CHECK(cuda_double::faults().empty());
  CHECK(cuda_double::leaks() == "");
}

template <class Kernel>
void check_masks() {
  const documents batch{std::array{3, 1, 9, 5}};  // three tokens of padding
  std::vector<int> first, end;
  for (int key = 0; key < 20; ++key) {
    first.push_back(key * 5 % 13);
    end.push_back(key % 4 == 0 ? key * 5 % 13 : 14 + key % 7);
  }
  check<Kernel>(batch & causal{} & window{.left = 3}, 2);
  check<Kernel>(intervals{first, end} & batch & causal{}, 2);
}

}  // namespace

TEST_CASE("masks with tables on emulated kernels") {
  check_masks<orrery::device_reference<double, streamed_device>>();
  check_masks<orrery::device_flash<orrery::bfloat16, 64, streamed_device>>();
}

TEST_CASE("workspace_bytes counts the table of a mask, also after replan") {
  cuda_double::reset({});
  using flash = orrery::device_flash<orrery::bfloat16, 64, streamed_device>;
  const orrery::attention_shape shape{.length = 20, .head_dim = 8, .forward_only = true};
  const documents one{std::array{20}}, three{std::array{3, 1, 9}};
  orrery::device::run(2, [&](auto& world) {
    orrery::attention<orrery::ring, flash> attend{world, shape, one & causal{}};
    const std::int64_t of_one = attend.workspace_bytes();
    attend.replan(world, three & causal{});
    CHECK(attend.workspace_bytes() - of_one == 2 * 8);  // of each document where it begins, and where the last one ends
    attend.replan(world, one & causal{});
    CHECK(attend.workspace_bytes() == of_one);
  });
  cuda_test::enqueued_work::forget();
  CHECK(cuda_double::leaks() == "");
}

TEST_CASE("views of masks answer as the masks") {
  const auto mask = intervals::causal_until(std::array{4, 3, 6, 4, 9, 9}) & documents{std::array{2, 5}} & causal{-1};
  std::vector<std::int64_t> table(static_cast<std::size_t>(mask.table_size()));
  mask.write_table(table.data());
  const auto view = mask.view(table.data());
  static_assert(std::is_trivially_copyable_v<decltype(view)>);
  for (std::int64_t q = 0; q < 9; ++q) {
    for (std::int64_t k = 0; k < 9; ++k) {
      CHECK(view.visible(q, k) == mask.visible(q, k));
      CHECK(view.classify(q / 2, q, k / 2, k) == mask.classify(q / 2, q, k / 2, k));
    }
    CHECK(view.keys_of(q / 2, q) == mask.keys_of(q / 2, q));
  }
  CHECK(view.name() == mask.name());
}
