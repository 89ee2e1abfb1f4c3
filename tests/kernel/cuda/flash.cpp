// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tensor-core kernel on the emulated device: each of its tests is also one of its use of shared memory, barriers
// and copies, since that device throws where they are wrong.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "device/emulator.hpp"

namespace cuda_test {
using tested = emulator::device;
}

#include "kernel/cuda/flash_cases.hpp"

namespace {

/// The first lane of a warp whose other lanes have no part of its row.
struct only_lane {
  std::byte* shared;
  bool adds;  ///< what others have is to be added, not compared

  [[nodiscard]] int lane() const { return 0; }
  void converge() const {}
  [[nodiscard]] float shuffle_xor(float value, int) const { return adds ? 0 : value; }
  [[nodiscard]] float exp2(float x) const { return std::exp2(x); }
  [[nodiscard]] orrery::detail::float_pair read_pair(const float* from) const { return {{from[0], from[1]}}; }
  void write_pair(float* to, const orrery::detail::float_pair& v) const {
    to[0] = v.of[0];
    to[1] = v.of[1];
  }
  template <class T>
  [[nodiscard]] T load(int at) const {
    T value;
    std::memcpy(&value, shared + at, sizeof value);
    return value;
  }
  template <class T>
  void store(int at, const T& value) const {
    std::memcpy(shared + at, &value, sizeof value);
  }
};

/// The sums of one row with 2^20 keys, tile by tile as the forward forms them, in some calls: exponent_of(i) is key i's
/// score, as an exponent of 2, and all values are 1.
template <class Exponent>
void check_sums(const char* name, int calls, const Exponent& exponent_of) {
  constexpr int keys = 1 << 20, of_tile = 16;  // of the lane
  using rows = orrery::detail::device_flash_rows<1, 4 * of_tile, 16>;
  std::vector<std::byte> shared(static_cast<std::size_t>(rows::shared_bytes(16)));
  const only_lane threads{shared.data(), false};
  float lse = 0, out = 0;
  orrery::forward_queries<bfloat16, float> block{};
  block.out = orrery::batch_sequence_head_dim(&out, 1, 1, 1, 1);
  block.lse = orrery::batch_head_sequence(&lse, 1, 1, 1);
  orrery::detail::device_item item{};
  item.tokens.count = 1;
  auto running = rows::of(0, 0, 16);
  double sum = 0;
  int key = 0;
  for (int call = 0; call < calls; ++call) {
    block.fresh = call == 0;
    running.begin(threads, block, item);
    const int tiles = keys / of_tile / calls;
    for (int tile = 0; tile < tiles; ++tile) {
      rows::scores scores;
      for (auto& n : scores.of[0]) {
        for (int i = 0; i < 2; ++i, ++key) {
          n[i] = exponent_of(key);
          sum += std::exp2(static_cast<double>(n[i]));
        }
        n[2] = n[3] = rows::nothing;
      }
      running.change(threads, running.weigh(threads, scores, 1.0f));
      float added = 0;
      for (const auto& n : scores.of[0]) added += n[0] + n[1];
      running.out.of[0][0][0] += added;
      if (tile % 128 == 127) {
        if (tile > 128 || call > 0) running.fetch(threads, block, item);
        if (tile + 1 < tiles) running.flush(threads, block, item);
      }
    }
    running.finish(only_lane{shared.data(), true}, block, item);
  }
  INFO(std::string{name}, ", calls ", calls);
  // Between calls a mean and a log-sum-exp are rounded.
  const double bound = 0x1p-24 * (4 + (calls > 1 ? calls : 0));
  const double expected = std::log(sum);
  CHECK(std::abs(static_cast<double>(lse) - expected) <= bound * (std::max)(1.0, std::abs(expected)));
  // A sum in registers is one of 128 tiles.
  CHECK(std::abs(static_cast<double>(out) - 1) <= bound + 128 * 0x1p-25);
}

}  // namespace

TEST_CASE("weights of a million keys: their sum, and what they weigh") {
  for (const int calls : {1, 8, 64}) {
    check_sums("all the same but one", calls, [](int key) { return key == 77 ? 0.0f : -0.3f; });
    check_sums("all the same but one, which is low", calls, [](int key) { return key == 77 ? -9.1f : 0.3f; });
    check_sums("rising slowly", calls, [](int key) { return static_cast<float>(key) * 0x1p-19f; });
    check_sums("falling slowly", calls, [](int key) { return static_cast<float>(key) * -0x1p-19f; });
    check_sums("rising fast", calls, [](int key) { return static_cast<float>(key) * 0x1p-12f; });
    check_sums("of all sizes", calls, [](int key) {
      return static_cast<float>(static_cast<unsigned>(key) * 2654435761u >> 16) * 0x1p-13f - 4;
    });
  }
}

TEST_CASE("no two rows of a matrix share a bank, whatever the head dimension") {
  for (const std::int64_t dim : {64, 96, 128, 192, 256}) {
    const oracle::shape shape{1, 16, 16, 1, 1, dim, dim == 192 ? 128 : dim, 0.1};
    emulator::counted = {};
    check<bfloat16, 256>(oracle::random_problem<bfloat16>(shape, 40), orrery::causal{}, cut(shape, 1, 1));
    CHECK(emulator::counted.matrix_loads > 0);
    CHECK(emulator::counted.matrix_replays == 0);
  }
}

TEST_CASE("results go to memory by pairs of floats where addresses and head dimensions allow") {
  constexpr std::int64_t queries = 9, keys = 11;
  const auto pairs_of = [](std::int64_t dim, std::int64_t margin, bool clear_first) {
    const oracle::shape shape{1, queries, keys, 1, 1, dim, dim, 1.0};
    plan how = cut(shape, 1, 1);
    how.margin = margin;
    how.clear_first = clear_first;
    emulator::counted = {};
    check<bfloat16>(oracle::random_problem<bfloat16>(shape, 13), any_mask{}, how);
    return emulator::counted.pairs;
  };
  constexpr std::int64_t out = queries * 4, gradients = (queries + 2 * keys) * 4;
  CHECK(pairs_of(8, 0, false) == out + gradients);
  CHECK(pairs_of(8, 2, false) == out + gradients);
  CHECK(pairs_of(8, 0, true) == out + 2 * gradients);
  CHECK(pairs_of(7, 0, false) == 0);
  CHECK(pairs_of(7, 1, true) == 0);
  // Rows begin at 4 + 36 i bytes: every other one is aligned.
  CHECK(pairs_of(8, 1, false) == 4 * 4 + (4 + 2 * 5) * 4);
}

TEST_CASE("what the kernel or the device cannot do is refused before anything is enqueued") {
  const oracle::shape shape{1, 4, 4, 1, 1, 65, 8, 1.0};
  const auto p = oracle::random_problem<bfloat16>(shape, 11);
  const auto before = emulator::counted.blocks;
  CHECK_THROWS_WITH_AS(kernel_test::run<kernel<bfloat16>>(p, any_mask{}, cut(shape, 1, 1)),
                       "orrery: head dimension is 65, but kernel device_flash<bfloat16> is compiled up to 64; its "
                       "second template argument goes up to 256",
                       std::invalid_argument);
  const oracle::shape small{1, 4, 4, 1, 1, 8, 8, 1.0};
  const auto fits = oracle::random_problem<bfloat16>(small, 12);
  const auto limits = emulator::device::limits;
  emulator::device::limits.compute_capability = 75;
  CHECK_THROWS_AS(kernel_test::run<kernel<bfloat16>>(fits, any_mask{}, cut(small, 1, 1)), std::invalid_argument);
  emulator::device::limits = limits;
  emulator::device::limits.shared_bytes = 20000;
  CHECK_THROWS_AS(kernel_test::run<kernel<bfloat16>>(fits, any_mask{}, cut(small, 1, 1)), std::invalid_argument);
  emulator::device::limits = limits;
  CHECK(emulator::counted.blocks == before);
  CHECK(kernel<bfloat16>::max_head_dim == 64);
}

TEST_CASE("shards whose tokens an int does not count are refused") {
  orrery::forward_queries<bfloat16, float> queries{};
  orrery::forward_keys<bfloat16> keys{};
  keys.positions.add({0, std::int64_t{1} << 31, std::int64_t{1} << 31, 1});
  CHECK_THROWS_WITH_AS(kernel<bfloat16>::forward({}, std::span<const decltype(queries)>{&queries, 1},
                                                 std::span<const decltype(keys)>{&keys, 1}, {}, 1.0f, any_mask{}),
                       "orrery: a shard has 2147483648 tokens, but kernel device_flash<bfloat16> takes fewer than "
                       "2147483392; distribute the sequence over more ranks",
                       std::invalid_argument);
}

namespace {

/// One key meets the running results of queries with dimension 1: a query is `score`, the key 1, its value 3.
struct running_results {
  std::vector<bfloat16> q;
  std::vector<float> out, lse;

  void add(float score, float lse_before, float out_before) {
    q.push_back(static_cast<bfloat16>(score));
    out.push_back(out_before);
    lse.push_back(lse_before);
  }
  void meet_key() {
    const auto count = static_cast<std::int64_t>(q.size());
    const bfloat16 key = static_cast<bfloat16>(1.0f), value = static_cast<bfloat16>(3.0f);
    orrery::forward_queries<bfloat16, float> queries{};
    queries.q = orrery::batch_sequence_head_dim<const bfloat16>(q.data(), 1, count, 1, 1);
    queries.out = orrery::batch_sequence_head_dim(out.data(), 1, count, 1, 1);
    queries.lse = orrery::batch_head_sequence(lse.data(), 1, 1, count);
    queries.positions = kernel_test::piece(0, count);
    queries.fresh = false;
    orrery::forward_keys<bfloat16> keys{};
    keys.k = orrery::batch_sequence_head_dim(&key, 1, 1, 1, 1);
    keys.v = orrery::batch_sequence_head_dim(&value, 1, 1, 1, 1);
    keys.positions = kernel_test::piece(0, 1);
    kernel<bfloat16>::forward({}, std::span<const decltype(queries)>{&queries, 1},
                              std::span<const decltype(keys)>{&keys, 1}, {}, 1.0f, orrery::full{});
  }
};

}  // namespace

TEST_CASE("a key that adds less than half a unit in the last place of a log-sum-exp leaves its bits alone") {
  running_results all;
  for (int i = 0; i < 128; ++i) {
    const float lse = 520 + 3.7123f * static_cast<float>(i);
    all.add(lse - 14, lse, 1);  // rounded to a multiple of 4: the sum grows by e^-16 to e^-12 of it
  }
  const std::vector<float> before = all.lse;
  all.meet_key();
  CHECK(all.lse == before);
}

TEST_CASE("what rows hold that have seen no key yet is not read") {
  running_results all;
  const float nothing = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < 20; ++i) {
    all.add(2, nothing, i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : -nothing);
  }
  all.meet_key();
  CHECK(all.out == std::vector<float>(20, 3.0f));
  CHECK(all.lse == std::vector<float>(20, 2.0f));
}
