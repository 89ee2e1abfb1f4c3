// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Views that share memory are told from those that lie beside each other or between each other's heads and tokens.
#include "orrery/attention/view_overlap.hpp"

#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include <doctest/doctest.h>

using orrery::detail::footprint;
using orrery::detail::overlap;
using orrery::detail::overlap_of;
using orrery::detail::overlap_within;

namespace {

template <class Visit>
void for_bytes(const footprint& f, const Visit& visit) {
  if (f.run == 0) return;
  for (std::int64_t i = 0; i <= f.last[0]; ++i) {
    for (std::int64_t j = 0; j <= f.last[1]; ++j) {
      for (std::int64_t k = 0; k <= f.last[2]; ++k) {
        const std::int64_t at = i * f.stride[0] + j * f.stride[1] + k * f.stride[2];
        for (std::int64_t byte = 0; byte < f.run; ++byte) visit(f.begin + static_cast<std::uint64_t>(at + byte));
      }
    }
  }
}

overlap expected(const footprint& a, const footprint& b) {
  std::set<std::uint64_t> bytes;
  for_bytes(a, [&](std::uint64_t at) { bytes.insert(at); });
  bool shared = false;
  for_bytes(b, [&](std::uint64_t at) { shared = shared || bytes.count(at) > 0; });
  return shared ? overlap::yes : overlap::no;
}

overlap expected_within(const footprint& a) {
  std::set<std::uint64_t> bytes;
  bool shared = false;
  for_bytes(a, [&](std::uint64_t at) { shared = !bytes.insert(at).second || shared; });
  return shared ? overlap::yes : overlap::no;
}

footprint view(std::uint64_t begin, std::int64_t run, std::int64_t n0, std::int64_t s0, std::int64_t n1,
               std::int64_t s1, std::int64_t n2, std::int64_t s2) {
  return footprint::of(begin, run, {n0, n1, n2}, {s0, s1, s2});
}

}  // namespace

TEST_CASE("views of few elements with any strides, against their bytes") {
  std::mt19937 engine{1};
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(engine() % static_cast<unsigned>(n)); };
  int met[2] = {0, 0};
  int met_within[2] = {0, 0};
  for (int i = 0; i < 30000; ++i) {
    const std::int64_t reach = i % 3 == 0 ? 8 : i % 3 == 1 ? 30 : 200;
    const auto draw = [&] {
      std::int64_t n[3], s[3];
      for (int d = 0; d < 3; ++d) n[d] = below(20) == 0 ? 0 : 1 + below(5), s[d] = below(reach);
      return view(static_cast<std::uint64_t>(1000 + below(reach)), 1 + below(4), n[0], s[0], n[1], s[1], n[2], s[2]);
    };
    const footprint a = draw();
    footprint b = draw();
    if (i % 2 == 0) {  // of the same strides, as packed tensors are
      for (int d = 0; d < 3; ++d) b.stride[d] = a.stride[d];
      const std::int64_t last[3] = {b.last[0] + 1, b.last[1] + 1, b.last[2] + 1};
      b = footprint::of(b.begin, b.run, last, b.stride);
    }
    const overlap right = expected(a, b);
    const overlap within = expected_within(a);
    ++met[right == overlap::yes ? 1 : 0];
    ++met_within[within == overlap::yes ? 1 : 0];
    REQUIRE(overlap_of(a, b) == right);
    REQUIRE(overlap_of(b, a) == right);
    REQUIRE(overlap_within(a) == within);
  }
  for (const int times : {met[0], met[1], met_within[0], met_within[1]}) CHECK(times > 3000);
}

TEST_CASE("large tensors: packed, interleaved and transposed") {
  constexpr std::int64_t batch = 7, tokens = 1'000'003, heads = 32, dim = 256;
  struct order {
    std::int64_t batch, tokens, heads;  // strides
  };
  constexpr std::int64_t pitch = 3 * heads * dim;
  const std::vector<order> orders{{tokens * pitch, pitch, dim},             // sequence-first in a batch
                                  {pitch, batch * pitch, dim},              // sequence-first
                                  {tokens * pitch, dim, 3 * tokens * dim},  // head-first
                                  {dim, batch * pitch, 3 * batch * dim},    // batches innermost
                                  {dim, 3 * batch * heads * dim, batch * dim}};
  for (const order& o : orders) {
    INFO("strides ", o.batch, " ", o.tokens, " ", o.heads);
    const auto at = [&](std::int64_t begin) {
      return view(static_cast<std::uint64_t>(4096 + begin), dim, batch, o.batch, tokens, o.tokens, heads, o.heads);
    };
    CHECK(overlap_within(at(0)) == overlap::no);
    CHECK(overlap_of(at(0), at(0)) == overlap::yes);
    CHECK(overlap_of(at(0), at(1)) == overlap::yes);
    CHECK(overlap_of(at(0), at(dim - 1)) == overlap::yes);
  }
  // Q, K and V of one projection, for each token one after the other; and interleaved head by head.
  const auto third = [&](std::int64_t begin, std::int64_t head_stride) {
    return view(static_cast<std::uint64_t>(begin), dim, batch, tokens * pitch, tokens, pitch, heads, head_stride);
  };
  CHECK(overlap_of(third(0, dim), third(heads * dim, dim)) == overlap::no);
  CHECK(overlap_of(third(0, dim), third(heads * dim - 1, dim)) == overlap::yes);
  CHECK(overlap_of(third(0, dim), third(2 * heads * dim + 1, dim)) == overlap::yes);  // its last head is the next token
  CHECK(overlap_of(third(0, 3 * dim), third(dim, 3 * dim)) == overlap::no);
  CHECK(overlap_of(third(0, 3 * dim), third(2 * dim, 3 * dim)) == overlap::no);
  CHECK(overlap_of(third(0, 3 * dim), third(2 * dim + 1, 3 * dim)) == overlap::yes);
  // Heads one after the other, and others between them, of other strides.
  CHECK(overlap_of(third(0, dim), third(heads * dim, 2 * dim)) == overlap::no);
  CHECK(overlap_of(third(0, dim), third((heads + 1) * dim, 2 * dim)) == overlap::no);
  CHECK(overlap_of(third(0, dim), third((heads + 2) * dim, 2 * dim)) == overlap::yes);
  // In each batch element one tensor token by token, then one head by head.
  const auto head_first =
      view(heads * tokens * dim, dim, batch, 2 * heads * tokens * dim, tokens, dim, heads, tokens * dim);
  const auto token_first = view(0, dim, batch, 2 * heads * tokens * dim, tokens, heads * dim, heads, dim);
  CHECK(overlap_of(token_first, head_first) == overlap::no);
  CHECK(overlap_of(head_first, token_first) == overlap::no);
  // One token more than there is room for.
  CHECK(overlap_within(view(0, dim, batch, tokens * dim - 1, tokens, dim, 1, 0)) == overlap::yes);
  CHECK(overlap_within(view(0, dim, batch, tokens * dim, tokens, dim, 1, 0)) == overlap::no);
}

TEST_CASE("strides that do not nest are decided or left open, in bounded time") {
  constexpr std::int64_t many = std::int64_t{1} << 28;
  CHECK(overlap_within(view(0, 1, many, 1'000'003, many, 999'983, 1, 0)) == overlap::yes);
  CHECK(overlap_within(view(0, 4, many, 6, many, 10, many, 15)) == overlap::yes);
  CHECK(overlap_of(view(0, 2, many, 8, 3, 4, many, 12), view(2, 2, many, 12, many, 8, 1, 0)) == overlap::no);
  CHECK(overlap_within(view(0, 2, many, 4, many, many / 2 * 3, 1, 0)) == overlap::yes);
  CHECK(overlap_within(view(0, 4, 49'997, 200'004, 50'001, 199'988, 1, 0)) == overlap::no);
  CHECK(overlap_within(view(0, 5, 49'997, 200'004, 50'001, 199'988, 1, 0)) == overlap::yes);
  CHECK(overlap_within(view(0, 1, 999'984, 1'000'003, 1'000'003, 999'983, 1, 0)) == overlap::no);
  CHECK(overlap_within(view(0, 1, 999'984, 1'000'003, 1'000'004, 999'983, 1, 0)) == overlap::yes);
  CHECK(overlap_within(view(0, 1, 999'983, 1'000'003, 1'000'004, 999'983, 1, 0)) == overlap::no);
}

TEST_CASE("extents beyond every address space") {
  constexpr std::int64_t most = INT64_MAX;
  for (const std::int64_t stride : {most, most / 2, std::int64_t{1} << 60}) {
    CHECK(view(0, 1, 3, stride, 1, 0, 1, 0).extent == -1);
    CHECK(view(0, 1, 1, stride, 1, 0, 1, 0).extent == 1);
  }
  CHECK(view(0, most, 1, 0, 1, 0, 1, 0).extent == -1);
  CHECK(view(0, 1, most, most, most, most, most, most).extent == -1);
}
