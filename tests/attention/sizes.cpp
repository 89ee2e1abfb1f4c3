// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Sizes of all magnitudes: an operator either is made, and is right about its sizes, or all ranks refuse with a
// message that says why. Under the sanitizer of undefined behaviour no size overflows on the way.
#include <cstdint>
#include <exception>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/attention/shape.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/transport/threads.hpp"

#include "support/any.hpp"
#include "support/conformance.hpp"

namespace sizes_test {

namespace {

using kernel = orrery::reference<float>;

std::int64_t random_size(std::mt19937_64& engine) {
  const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(engine() % n); };
  switch (below(8)) {
    case 0:  // next to a power of two, up to the largest number
      return static_cast<std::int64_t>((std::uint64_t{1} << below(63)) - 1 + engine() % 3);
    case 1:  // any
      return static_cast<std::int64_t>(engine() >> below(64));
    case 2:
      return -static_cast<std::int64_t>(engine() >> (1 + below(63)));
    case 3:
      return INT64_MAX - below(3);
    default:
      return 1 + below(24);
  }
}

/// Empty, or what is wrong with how a shape was taken or refused.
std::string failure(int world, const orrery::any_topology& topology, const conformance::any_layout& layout,
                    const orrery::attention_shape& shape, std::set<std::string>& kinds) {
  std::vector<std::string> said(static_cast<std::size_t>(world));
  std::vector<std::int64_t> tokens(said.size());
  std::vector<std::int64_t> key_tokens(said.size());
  try {
    orrery::threads::run(world, [&](auto& on) {
      const auto rank = static_cast<std::size_t>(on.rank());
      try {
        const orrery::attention<orrery::any_topology, kernel> attend{on, shape, orrery::full{}, layout, topology};
        tokens[rank] = attend.query_positions().size();
        key_tokens[rank] = attend.key_positions().size();
        if (attend.workspace_bytes() < 0) said[rank] = "a negative workspace";
      } catch (const std::invalid_argument& e) {
        said[rank] = e.what();
      }
    });
  } catch (const orrery::detail::memory_error&) {
    return "";
  } catch (const std::exception& e) {
    return e.what();
  }
  for (const std::string& one : said) {
    if (one != said[0]) return said[0] + ", but also " + one;
  }
  if (said[0].empty()) {
    std::int64_t queries = 0;
    std::int64_t keys = 0;
    for (const std::int64_t count : tokens) queries += count;
    for (const std::int64_t count : key_tokens) keys += count;
    if (queries != shape.length || keys != shape.key_length.value_or(shape.length)) return "tokens are missing";
    kinds.insert("taken");
  } else {
    for (const char* kind : {" is ", "too large", "divisor", "slices", "expected at least 1"}) {
      if (said[0].find(kind) != std::string::npos) kinds.insert(kind);
    }
    if (said[0].find("orrery: rank 0: ") != 0) return said[0];
  }
  return "";
}

/// Would constructing it take memory that a machine may have, but a test should not ask for?
bool takes_memory(const orrery::attention_shape& shape) {
  const orrery::attention_shape full = shape.completed();
  const auto number = [](std::int64_t size) { return static_cast<double>(size); };
  const double tokens = number(full.length > *full.key_length ? full.length : *full.key_length);
  const double rows = number(full.batch) * tokens * number(full.query_heads);
  const double bytes = rows * (number(full.head_dim) + number(*full.value_dim) + 2) * sizeof(float);
  return bytes > 1e7 && bytes < 1e17;
}

}  // namespace

TEST_CASE("random sizes") {
  std::mt19937_64 engine{1};
  const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(engine() % n); };
  const std::vector<orrery::any_topology> topologies = any::topologies();
  const conformance::any_layout layouts[] = {orrery::contiguous{}, orrery::zigzag{}, orrery::striped<1>{},
                                             orrery::striped<3>{}, orrery::striped<(std::int64_t{1} << 61) + 1>{}};
  std::set<std::string> kinds;
  for (int i = 0; i < 600; ++i) {
    orrery::attention_shape shape;
    const auto size = [&] { return below(3) == 0 ? random_size(engine) : 1 + below(24); };
    shape.batch = below(2) == 0 ? 1 : size();
    shape.length = size();
    shape.query_heads = size();
    shape.head_dim = size();
    if (below(2) == 0) shape.key_heads = below(3) == 0 ? 1 : size();
    if (below(3) == 0) shape.value_dim = size();
    if (below(3) == 0) shape.key_length = size();
    if (i % 4 == 0) {  // each size alone is none too large
      std::int64_t* const sizes[] = {&shape.batch, &shape.length, &shape.query_heads, &shape.head_dim};
      for (std::int64_t* const one : sizes) *one = 1;
      for (std::int64_t doublings = 50 + below(30); doublings > 0; --doublings) *sizes[below(4)] *= 2;
      shape.key_heads = shape.value_dim = shape.key_length = {};
    }
    const int world = static_cast<int>(1 + below(6));
    const auto& topology = topologies[static_cast<std::size_t>(below(topologies.size()))];
    const auto& layout = layouts[below(std::size(layouts))];
    if (takes_memory(shape)) continue;
    INFO(topology.name(), " over ", world, ", ", layout.name(), ", batch ", shape.batch, ", length ", shape.length,
         ", heads ", shape.query_heads, "/", shape.key_heads.value_or(-1), ", dims ", shape.head_dim, "/",
         shape.value_dim.value_or(-1), ", key length ", shape.key_length.value_or(-1));
    CHECK(failure(world, topology, layout, shape, kinds) == "");
  }
  CHECK(kinds == std::set<std::string>{" is ", "too large", "divisor", "slices", "expected at least 1", "taken"});
}

TEST_CASE("random strides") {
  std::mt19937_64 engine{2};
  int taken = 0;
  int refused = 0;
  float number = 0;
  for (int i = 0; i < 20000; ++i) {
    const orrery::detail::expected_view expected{"forward", "out", 2, 3, 4, 5};
    const orrery::detail::expected_view expected_rows{"forward", "lse", 2, 3, 4, 1};
    const orrery::tensor_view<float> tensor{
        &number, 2, 3, 4, 5, random_size(engine), random_size(engine), random_size(engine)};
    const orrery::row_view<float> rows{&number, 2, 4, 3, random_size(engine), random_size(engine), random_size(engine)};
    const auto check = [&](const auto& call) {
      try {
        call();
        ++taken;
      } catch (const std::invalid_argument&) {
        ++refused;
      }
    };
    check([&] { orrery::detail::call_views{}.writes(expected, tensor); });
    check([&] { orrery::detail::call_views{}.reads(expected, tensor); });
    check([&] { orrery::detail::call_views{}.writes(expected_rows, rows); });
    check([&] { orrery::detail::call_views{}.reads(expected_rows, rows); });
  }
  CHECK(taken > 100);
  CHECK(refused > 100);
}

}  // namespace sizes_test
