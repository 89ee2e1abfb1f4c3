// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <string>

#include "orrery/layout/segment.hpp"

namespace orrery {

/// A layout that gives whole shards, each as at most two segments.
template <class Layout>
concept layout_of_shards = requires(const Layout& l, std::int64_t length) {
  { l.shard(0, 1, length) } -> std::same_as<segments>;
};

/// A layout that cuts shards into chunks, each of at most two segments. It has `chunks(world, length)`, how many there
/// are in each shard, 1 to 65535, and `chunk(rank, chunk, world, length)`. The tokens of a shard are those of its
/// chunks in their order, and ascend. Chunks may be empty, and of any sizes.
template <class Layout>
concept layout_of_chunks = requires(const Layout& l, std::int64_t length) {
  { l.chunks(1, length) } -> std::same_as<int>;
  { l.chunk(0, 0, 1, length) } -> std::same_as<segments>;
};

/// A layout says which tokens of a sequence are which rank's shard, as at most two increasing segments of global
/// positions, and where: `shard(rank, world, length)`. All shards together are the sequence: each position 0, ...,
/// length - 1 is in one of them. Lengths need not divide by anything, and shards may be empty. Every rank asks for the
/// shards of all ranks. An operator checks all this when it is made (see `detail::layout_source`). `name()` is what
/// ranks compare at construction.
///
/// It may also, or instead, say of which chunks each shard consists (`layout_of_chunks`): a shard then has any number
/// of segments, and what a mask hides of a shard need not be sent, chunk by chunk. One that does neither but give
/// shards has one chunk a shard. Where it does both, they must agree.
template <class Layout>
concept layout = std::copy_constructible<Layout> &&
    (layout_of_shards<Layout> || layout_of_chunks<Layout>)&&requires(const Layout& l) {
  { l.name() } -> std::convertible_to<std::string>;
};

}  // namespace orrery

namespace orrery::detail {

/// Where the `index`-th of `pieces` pieces of a whole begins, which differ by one at most; 0 <= index <= pieces, which
/// is at most 2^32. Right for every whole >= 0: no product overflows.
[[nodiscard]] constexpr std::int64_t begin_of_piece(std::int64_t index, std::int64_t pieces,
                                                    std::int64_t whole) noexcept {
  const auto rest = static_cast<std::uint64_t>(index) * static_cast<std::uint64_t>(whole % pieces);
  return index * (whole / pieces) + static_cast<std::int64_t>(rest / static_cast<std::uint64_t>(pieces));
}

}  // namespace orrery::detail

namespace orrery {

/// Rank r has the r-th of `world` pieces, whose lengths differ by one token at most. Right for full masks; under a
/// causal mask the last rank has nearly twice the average work.
struct contiguous {
  // NOLINTNEXTLINE(bugprone-exception-escape): adds two segments at most
  [[nodiscard]] static constexpr segments shard(int rank, int world, std::int64_t length) noexcept {
    segments shard;
    shard.add(piece(rank, world, length));
    return shard;
  }
  [[nodiscard]] static std::string name() { return "contiguous"; }

  /// The `index`-th of `pieces` pieces of the sequence.
  [[nodiscard]] static constexpr segment piece(std::int64_t index, std::int64_t pieces, std::int64_t length) noexcept {
    const std::int64_t begin = detail::begin_of_piece(index, pieces, length);
    const std::int64_t count = detail::begin_of_piece(index + 1, pieces, length) - begin;
    return {begin, count, count, count};
  }
};

/// Of 2·world pieces rank r has the r-th from the front and the r-th from the back: under a causal mask every rank has
/// the same work, in every step of a ring (as in ring-flash-attention; see also arXiv 2407.00611). The two pieces are
/// the shard's chunks.
struct zigzag {
  // NOLINTNEXTLINE(bugprone-exception-escape): adds two segments at most
  [[nodiscard]] static constexpr segments shard(int rank, int world, std::int64_t length) noexcept {
    const std::int64_t pieces = std::int64_t{2} * world;
    segments shard;
    shard.add(contiguous::piece(rank, pieces, length));
    shard.add(contiguous::piece(pieces - 1 - rank, pieces, length));
    return shard;
  }
  [[nodiscard]] static constexpr int chunks(int /*world*/, std::int64_t /*length*/) noexcept { return 2; }
  // NOLINTNEXTLINE(bugprone-exception-escape): adds a segment
  [[nodiscard]] static constexpr segments chunk(int rank, int chunk, int world, std::int64_t length) noexcept {
    const std::int64_t pieces = std::int64_t{2} * world;
    segments some;
    some.add(contiguous::piece(chunk == 0 ? rank : pieces - 1 - rank, pieces, length));
    return some;
  }
  [[nodiscard]] static std::string name() { return "zigzag"; }
};

}  // namespace orrery

namespace orrery::detail {

/// The shard of `striped<run>`.
// NOLINTNEXTLINE(bugprone-exception-escape): adds one segment
[[nodiscard]] constexpr segments striped_shard(int rank, int world, std::int64_t length, std::int64_t run) noexcept {
  const std::int64_t stripes = length / run;  // whole ones
  const std::int64_t turns = stripes / world;
  const std::int64_t more = stripes % world;  // ranks that have one more
  const std::int64_t last = rank < more ? run : rank == more ? length % run : 0;
  segments shard;
  // Products that a rank without tokens, or with one stripe, does not need could overflow.
  if (turns > 0 || last > 0) shard.add({rank * run, turns * run + last, run, turns > 0 ? world * run : run});
  return shard;
}

}  // namespace orrery::detail

namespace orrery {

/// Stripes of `Run` tokens are dealt to the ranks in turn (striped attention, arXiv 2311.09431).
template <std::int64_t Run = 1>
struct striped {
  static_assert(Run >= 1, "orrery: striped<Run> needs stripes of Run >= 1 tokens");

  // NOLINTNEXTLINE(bugprone-exception-escape): adds two segments at most
  [[nodiscard]] static constexpr segments shard(int rank, int world, std::int64_t length) noexcept {
    return detail::striped_shard(rank, world, length, Run);
  }
  [[nodiscard]] static std::string name() { return "striped<" + std::to_string(Run) + ">"; }
};

}  // namespace orrery
