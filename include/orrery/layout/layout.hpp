// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <string>

#include "orrery/layout/segment.hpp"

namespace orrery {

/// A layout says which tokens of a sequence are which rank's shard, as at most two increasing segments of global
/// positions, and where: `shard(rank, world, length)`. All shards together are the sequence; lengths need not divide by
/// anything, and shards may be empty. `name()` is what ranks compare at construction.
template <class Layout>
concept layout = std::copy_constructible<Layout> && requires(const Layout& l, std::int64_t length) {
  { l.shard(0, 1, length) } -> std::same_as<segments>;
  { l.name() } -> std::convertible_to<std::string>;
};

/// Rank r has the r-th of `world` pieces, whose lengths differ by one token at most. Right for full masks; under a
/// causal mask the last rank has nearly twice the average work.
struct contiguous {
  [[nodiscard]] static constexpr segments shard(int rank, int world, std::int64_t length) noexcept {
    const std::int64_t begin = rank * length / world;
    const std::int64_t count = (rank + 1) * length / world - begin;
    segments shard;
    shard.add({begin, count, count, count});
    return shard;
  }
  [[nodiscard]] static std::string name() { return "contiguous"; }
};

/// Of 2·world pieces rank r has the r-th from the front and the r-th from the back: under a causal mask every rank has
/// the same work, in every step of a ring (as in ring-flash-attention; see also arXiv 2407.00611).
struct zigzag {
  [[nodiscard]] static constexpr segments shard(int rank, int world, std::int64_t length) noexcept {
    const segments front = contiguous::shard(rank, 2 * world, length);
    const segments back = contiguous::shard(2 * world - 1 - rank, 2 * world, length);
    segments shard;
    for (const segment& piece : front) shard.add(piece);
    for (const segment& piece : back) shard.add(piece);
    return shard;
  }
  [[nodiscard]] static std::string name() { return "zigzag"; }
};

/// Stripes of `Run` tokens are dealt to the ranks in turn (striped attention, arXiv 2311.09431).
template <std::int64_t Run = 1>
struct striped {
  static_assert(Run >= 1, "orrery: striped<Run> needs stripes of Run >= 1 tokens");

  [[nodiscard]] static constexpr segments shard(int rank, int world, std::int64_t length) noexcept {
    const std::int64_t begin = rank * Run;
    const std::int64_t turn = world * Run;
    const std::int64_t turns = length / turn;
    const std::int64_t rest = length - turns * turn - begin;
    const std::int64_t last = rest < 0 ? 0 : rest < Run ? rest : Run;
    segments shard;
    shard.add({begin, turns * Run + last, Run, turn});
    return shard;
  }
  [[nodiscard]] static std::string name() { return "striped<" + std::to_string(Run) + ">"; }
};

}  // namespace orrery
