// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Every mask of the library, and combinations, in the kernels of devices against the oracle. Kernels take a mask as a
// device does: its view of a table. What they ask is passed on, so that each kernel is compiled for two types of masks:
// those of which a query sees an interval of keys, and others.
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/device_flash.cuh"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/intervals.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"

#include "device/check.hpp"
#include "device/emulator.hpp"
#include "device/emulator_warpgroup.hpp"
#include "kernel/cuda/flash_plans.hpp"
#include "kernel/cuda/masks.hpp"
#include "kernel/problem.hpp"
#include "support/oracle.hpp"

namespace {

using orrery::bfloat16;
using orrery::causal;
using orrery::documents;
using orrery::intervals;
using orrery::position_interval;
using orrery::prefix;
using orrery::visibility;
using orrery::window;

/// What kernels ask of a mask's view.
struct questions {
  virtual ~questions() = default;
  [[nodiscard]] virtual bool visible(std::int64_t query, std::int64_t key) const = 0;
  [[nodiscard]] virtual visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                            std::int64_t key_last) const = 0;
  [[nodiscard]] virtual position_interval keys_of(std::int64_t query_first, std::int64_t query_last) const = 0;
};

template <class Mask>
struct questions_of final : questions {
  std::vector<std::int64_t> table;
  decltype(orrery::detail::view_of(std::declval<const Mask&>(), nullptr)) view;

  explicit questions_of(const Mask& mask)
      : table(static_cast<std::size_t>(orrery::detail::table_size_of(mask))),
        view{orrery::detail::view_of(mask, table.data())} {
    static_assert(orrery::detail::is_mask_for_devices<Mask>() && std::is_trivially_copyable_v<decltype(view)>);
    if constexpr (orrery::mask_with_table<Mask>) mask.write_table(table.data());
  }
  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const override { return view.visible(query, key); }
  [[nodiscard]] visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                    std::int64_t key_last) const override {
    return view.classify(query_first, query_last, key_first, key_last);
  }
  [[nodiscard]] position_interval keys_of([[maybe_unused]] std::int64_t query_first,
                                          [[maybe_unused]] std::int64_t query_last) const override {
    if constexpr (orrery::mask_with_keys_of<decltype(view)>) return view.keys_of(query_first, query_last);
    return {};
  }
};

/// A mask that passes questions on.
struct asking_mask {
  const questions* of;

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const { return of->visible(query, key); }
  [[nodiscard]] visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                    std::int64_t key_last) const {
    return of->classify(query_first, query_last, key_first, key_last);
  }
  [[nodiscard]] static std::string name() { return "a view"; }
};
struct asking_mask_of_intervals : asking_mask {
  static constexpr bool rows_are_intervals = true;
  [[nodiscard]] position_interval keys_of(std::int64_t query_first, std::int64_t query_last) const {
    return of->keys_of(query_first, query_last);
  }
};
static_assert(orrery::detail::mask_of_intervals<asking_mask_of_intervals>);
static_assert(!orrery::detail::mask_of_intervals<asking_mask>);

constexpr std::int64_t query_count = 80, key_count = 150;

/// Calls check(mask) with each.
template <class Check>
void for_every_mask(const Check& check) {
  const documents batch{std::array{30, 1, 26, 20}};  // padding behind
  const documents apart{std::array{30, 4, 26, 20}, std::array{40, 1, 70, 30}};
  std::vector<int> first, end;
  for (int key = 0; key < 140; ++key) {  // padding behind; some keys nobody sees
    first.push_back(key * 5 % 67);
    end.push_back(key % 4 == 0 ? key * 5 % 67 : key * 5 % 67 + key % 13);
  }
  const intervals some{first, end};
  check(orrery::full{});
  check(causal{});
  check(causal{-20});
  check(causal::bottom_right(query_count, key_count));
  check(window{.left = 17, .right = 3});
  check(window{.right = 70});
  check(prefix{40});
  check(causal{60} & window{.left = 33});
  check(batch);
  check(batch & causal{} & window{.left = 9});
  check(batch & prefix{5});
  check(apart & causal{});
  check(apart.top_left() & causal{});
  check(some);
  check(some & causal{60});
  check(some & batch);
  check(cuda_test::band{25});
  check(batch & cuda_test::holes{});
}

template <class Kernel>
void check_every_mask(bool in_shards) {
  const oracle::shape shape{1, query_count, key_count, 1, 1, 8, 16, 0.25};
  const auto p = oracle::random_problem<bfloat16>(shape, 91);
  kernel_test::plan how = cuda_test::cut(shape, in_shards ? 2 : 1, in_shards ? 2 : 1);
  how.one_call = how.clear_first = in_shards;
  for_every_mask([&](const auto& mask) {
    using mask_type = std::remove_cvref_t<decltype(mask)>;
    using asking =
        std::conditional_t<orrery::detail::mask_of_intervals<mask_type>, asking_mask_of_intervals, asking_mask>;
    const questions_of<mask_type> view{mask};
    asking asked;
    asked.of = &view;
    const oracle::answer expected = oracle::solve(p, mask);
    cuda_test::compare(p, how, Kernel::name() + " with " + mask.name(), expected,
                       kernel_test::run<Kernel>(p, asked, how), oracle::tolerance<bfloat16> / 2,
                       oracle::tolerance<float>);
  });
}

}  // namespace

TEST_CASE("every mask of the library with device_reference") {
  check_every_mask<orrery::device_reference<bfloat16, emulator::device>>(true);
}

TEST_CASE("every mask of the library with device_flash") {
  using flash = orrery::device_flash<bfloat16, 64, emulator::device>;
  for (const bool in_shards : {false, true}) check_every_mask<flash>(in_shards);
}

TEST_CASE("every mask of the library with device_flash by warpgroups") {
  emulator::counted.products = 0;
  check_every_mask<orrery::device_flash<bfloat16, 64, emulator::warpgroup_device, orrery::device_instructions::wgmma>>(
      false);
  CHECK(emulator::counted.products > 0);
}
