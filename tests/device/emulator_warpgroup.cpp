// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What the device on the host has of compute capability 9.0: what it computes, and that it sees what a GPU would let
// pass until it goes wrong.
#include "device/emulator_warpgroup.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace cuda_test {
using tested = emulator::warpgroup_device;
}

#include "device/warpgroup_cases.hpp"

namespace {

using emulator::warpgroup_threads;

template <class Work>
struct body {
  Work work;
  void operator()(const warpgroup_threads& threads) const { work(threads); }
};

template <int count = 128, class Work>
void run(int shared_bytes, const Work& work) {
  emulator::warpgroup_device::launch_warpgroups<count>({}, 1, shared_bytes, body<Work>{work});
}

/// What a block of two warpgroups is blamed for.
template <class Work>
std::string blame(const Work& work) {
  try {
    run<256>(64 * 1024, work);
  } catch (const emulator::misuse& found) {
    return found.what();
  }
  return "";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("matrix descriptors, bit by bit") {
  const std::uint64_t bits = orrery::detail::matrix_descriptor(0x12340, 0x4000, 0x400);
  CHECK((bits & 0x3fff) == 0x1234);
  CHECK((bits >> 16 & 0x3fff) == 0x400);
  CHECK((bits >> 32 & 0x3fff) == 0x40);
  CHECK((bits >> 62) == 1);
  CHECK((bits & ~(std::uint64_t{1} << 62 | std::uint64_t{0x40} << 32 | std::uint64_t{0x400} << 16 | 0x1234)) == 0);
  CHECK(orrery::detail::matrix_descriptor(0x40010, 16, 16) ==
        orrery::detail::matrix_descriptor(0x10, 16, 16));  // 18 bits of address
}

TEST_CASE("mbarriers pass values on, phase by phase; named barriers join the threads that they count") {
  std::vector<int> got(6), joined(32);
  run<256>(256, [to = got.data(), of_joined = joined.data()](const warpgroup_threads& t) {
    if (t.thread() == 0) {
      t.mbarrier_init(32, 2);
      t.mbarrier_init(40, 1);
      t.fence_async_proxy();
    }
    t.barrier();
    for (int i = 0; i < 6; ++i) {
      if (t.thread() < 2) {
        if (i > 0) t.mbarrier_wait(40, (i - 1) % 2);
        t.store(4 * t.thread(), 10 * i + t.thread());
        t.mbarrier_arrive(32);
      } else if (t.thread() == 200) {
        t.mbarrier_wait(32, i % 2);
        to[i] = t.load<int>(0) + t.load<int>(4);
        t.mbarrier_arrive(40);
      }
    }
    if (t.warp() == 2) {  // does not wait for the other
      t.store(128 + 4 * t.lane(), t.lane());
      t.named_barrier_arrive(3, 64);
    } else if (t.warp() == 5) {
      t.named_barrier_sync(3, 64);
      of_joined[t.lane()] = t.load<int>(128 + 4 * (31 - t.lane()));
    }
  });
  for (int i = 0; i < 6; ++i) CHECK(got[static_cast<std::size_t>(i)] == 20 * i + 1);
  for (int i = 0; i < 32; ++i) CHECK(joined[static_cast<std::size_t>(i)] == 31 - i);
}

namespace {

enum class flaw {
  none,
  no_fence_of_mbarriers,
  no_bytes_expected,
  one_thread_does_not_wait,
  waits_for_other_parity,
  copy_is_not_aligned,
  no_fence_of_products,
  sums_used_early,
  sums_changed_early,
  sums_discarded_early,
  operand_changed_early,
  overwritten_early,
  overwritten_without_mbarrier,
  arrives_before_products_are_done,
  lanes_are_not_converged,
  row_is_read_by_threads_too_late,
  written_by_threads_without_fence,
  other_stride,
  other_swizzle,
  not_at_the_pattern,
  products_left,
  copies_left,
  one_arrival_is_enough,
};

/// One warpgroup multiplies what a thread of the other brings, twice; with one thing done wrong.
struct two_rounds {
  orrery::detail::tensor_map map;
  flaw what;

  static constexpr int there = 32768, taken = 32776;
  using tile = swizzled_tile<64, 64>;

  void operator()(const warpgroup_threads& t) const {
    const auto is = [&](flaw one) { return what == one; };
    if (t.thread() == 0) {
      t.mbarrier_init(there, 1);
      t.mbarrier_init(taken, is(flaw::one_arrival_is_enough) ? 1 : 4);
      if (!is(flaw::no_fence_of_mbarriers)) t.fence_async_proxy();
    }
    t.barrier();
    if (t.warp() >= 4) {
      if (t.thread() == 128) bring(t);
      return;
    }
    float sums[8][4] = {};
    std::uint32_t words[1][4] = {};
    for (int round = 0; round < 2; ++round) {
      const bool waits = !is(flaw::one_thread_does_not_wait) || t.thread() != 77;
      if (waits) t.mbarrier_wait(there, is(flaw::waits_for_other_parity) ? 1 - round : round);
      if (is(flaw::written_by_threads_without_fence) && round == 1) {
        if (t.thread() == 5) t.store(8192, std::uint32_t{0});
        t.named_barrier_sync(1, 128);
      }
      if (!is(flaw::no_fence_of_products)) t.fence_products();
      std::uint64_t a = tile{0}.along_columns(t, 0, 0), b = tile{8192}.along_columns(t, 0, 0);
      if (is(flaw::other_stride)) b += std::uint64_t{8192 / 16} << 32;
      if (is(flaw::other_swizzle)) b ^= std::uint64_t{3} << 62;
      if (is(flaw::not_at_the_pattern)) a += 128 / 16;
      t.multiply<bfloat16>(sums, a, b, true);
      t.multiply_add<bfloat16, 0, 8>(sums, words[0], tile{8192}.along_rows(t, 0, 0));
      t.commit_products();
      if (is(flaw::sums_used_early)) t.hold(sums);
      if (is(flaw::sums_changed_early)) sums[3][1] = 0;
      if (is(flaw::sums_discarded_early)) t.discard(sums);
      if (is(flaw::operand_changed_early)) words[0][2] = 1;
      if (is(flaw::overwritten_early) && t.thread() == 9) t.store(4, 1);
      if (is(flaw::arrives_before_products_are_done) && t.lane() == 0) t.mbarrier_arrive(taken);
      if (is(flaw::products_left) && round == 1) break;
      t.wait_for_products<0>();
      t.hold(sums);
      t.hold(words);
      if (is(flaw::lanes_are_not_converged) || is(flaw::row_is_read_by_threads_too_late)) {
        if (is(flaw::row_is_read_by_threads_too_late)) t.converge();
        if (t.lane() == 3) static_cast<void>(t.load<float>(128));
      }
      if (!is(flaw::lanes_are_not_converged) && !is(flaw::row_is_read_by_threads_too_late)) t.converge();
      if (!is(flaw::arrives_before_products_are_done) && t.lane() == 0) t.mbarrier_arrive(taken);
    }
  }

  void bring(const warpgroup_threads& t) const {
    const auto is = [&](flaw one) { return what == one; };
    for (int round = 0; round < (is(flaw::copies_left) ? 3 : 2); ++round) {
      if (round > 0 && !is(flaw::overwritten_without_mbarrier)) t.mbarrier_wait(taken, round - 1);
      t.mbarrier_arrive_expecting(there, is(flaw::no_bytes_expected) ? 8192 : 16384);
      tile{is(flaw::copy_is_not_aligned) ? 512 : 0}.copy(t, map, there, 0, 0, 0);
      tile{8192}.copy(t, map, there, 0, 0, 0);
    }
  }
};

std::string blame_for(flaw what) {
  const auto data = integers<bfloat16>(64 * 64, 5);
  return blame(two_rounds{map_of(data, 64, 64), what});
}

}  // namespace

TEST_CASE("misuse of the asynchronous proxy has a message") {
  CHECK(blame_for(flaw::none) == "");
  const auto expect = [](flaw what, const char* part) {
    const std::string found = blame_for(what);
    INFO(static_cast<int>(what), ": ", found);
    CHECK(contains(found, part));
  };
  expect(flaw::no_fence_of_mbarriers, "an mbarrier that was initialised without fence_async_proxy");
  expect(flaw::no_bytes_expected, "multiplies memory that is being copied to");
  expect(flaw::one_thread_does_not_wait, "multiplies memory without having waited for who wrote it");
  expect(flaw::waits_for_other_parity, "multiplies memory that is being copied to");
  expect(flaw::copy_is_not_aligned, "a place that no swizzled tile can have");
  expect(flaw::no_fence_of_products, "without fence_products");
  expect(flaw::sums_used_early, "uses sums of a product that it has not waited for");
  expect(flaw::sums_changed_early, "has written to sums of a product");
  expect(flaw::sums_discarded_early, "uses sums of a product that it has not waited for");
  expect(flaw::operand_changed_early, "has changed the left operand of a product");
  expect(flaw::overwritten_early, "overwrites shared memory that an unfinished product reads");
  expect(flaw::overwritten_without_mbarrier, "arrives more often than the mbarrier was initialised for");
  expect(flaw::arrives_before_products_are_done, "overwrites what products");
  expect(flaw::lanes_are_not_converged, "writes what another thread reads, without a barrier");
  expect(flaw::row_is_read_by_threads_too_late, "writes what another thread reads, without a barrier");
  expect(flaw::written_by_threads_without_fence, "wrote without fence_async_proxy");
  expect(flaw::other_stride, "multiplies memory that nobody has written");
  expect(flaw::other_swizzle, "has not the swizzle of 128 bytes");
  expect(flaw::not_at_the_pattern, "does not begin where the pattern of its swizzle does");
  expect(flaw::products_left, "products are on their way");
  expect(flaw::copies_left, "ends while");
  expect(flaw::one_arrival_is_enough, "stands still");
}

TEST_CASE("misuse of barriers and registers has a message") {
  CHECK(
      contains(blame([](const warpgroup_threads& t) { t.mbarrier_arrive(8); }), "an mbarrier that is not initialised"));
  CHECK(contains(blame([](const warpgroup_threads& t) {
                   if (t.thread() == 0) t.mbarrier_init(0, 1);
                   if (t.thread() == 1) t.mbarrier_arrive(0);
                 }),
                 "that another thread initialised, without a barrier"));
  CHECK(contains(blame([](const warpgroup_threads& t) {
                   initialise(t, 0, 1);
                   if (t.thread() == 1) static_cast<void>(t.load<int>(4));
                 }),
                 "reads an mbarrier"));
  CHECK(contains(blame([](const warpgroup_threads& t) {
                   initialise(t, 0, 1);
                   if (t.thread() == 1) t.mbarrier_arrive_expecting(0, 16);
                   if (t.thread() == 1) t.mbarrier_arrive(0);
                 }),
                 "arrives more often than the mbarrier was initialised for"));
  CHECK(contains(blame([](const warpgroup_threads& t) {
                   initialise(t, 0, 1);
                   t.mbarrier_wait(0, 0);
                 }),
                 "stands still: thread 0 waits in mbarrier_wait"));
  CHECK(contains(blame([](const warpgroup_threads& t) {
                   if (t.warp() == 0) t.named_barrier_arrive(1, 64);
                 }),
                 "threads of a named barrier are missing"));
  CHECK(contains(blame([](const warpgroup_threads& t) { t.named_barrier_sync(1, t.warp() == 0 ? 64 : 96); }),
                 "with another number of threads"));
  CHECK(contains(blame([](const warpgroup_threads& t) { t.named_barrier_sync(16, 256); }), "that there is not"));
  CHECK(contains(blame([](const warpgroup_threads& t) { t.take_registers<232>(); }), "from 255 to 232"));
  CHECK(contains(blame([](const warpgroup_threads& t) { t.take_registers<256>(); }), "ask for 512 registers, of 510"));
  CHECK(contains(blame([](const warpgroup_threads& t) { t.give_registers_back<100>(); }), "from 255 to 100"));
  CHECK(contains(blame([](const warpgroup_threads& t) {
                   t.store(4 * t.thread(), 1);
                   if (t.warp() >= 4) static_cast<void>(t.load<int>(4 * t.thread() - 512));
                 }),
                 "wrote, without a barrier"));
  CHECK(contains(blame([](const warpgroup_threads& t) {
                   if (t.thread() == 0) t.store(0, 1);
                   if (t.warp() == 0) t.converge();
                   if (t.thread() < 33) static_cast<void>(t.load<int>(0));
                 }),
                 "thread 32"));
  CHECK(contains(blame([](const warpgroup_threads& t) {
                   if (t.warp() == 1) t.fence_products();
                 }),
                 "stands still"));
}
