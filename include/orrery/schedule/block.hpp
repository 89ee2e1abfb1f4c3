// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

namespace orrery::schedule {

/// The two sides of an interaction. For attention: Q and what belongs to a query; K and V and what belongs to a key.
enum class side : std::uint8_t { query, key };

/// What moves. Operands are read-only and may be copied to many ranks; partials are sums under way, moved and merged,
/// never duplicated.
enum class payload : std::uint8_t { operand, partial };

/// What is in a slot: operands or partials of one side. The values number arrays of `slot_kinds` entries.
enum slot_kind : std::uint8_t { query_operand, query_partial, key_operand, key_partial };
inline constexpr int slot_kinds = 4;
[[nodiscard]] constexpr slot_kind kind_of(side s, payload c) noexcept {
  return static_cast<slot_kind>(2 * static_cast<unsigned>(s) + static_cast<unsigned>(c));
}

/// How a rank's own operands leave it, if they consist of several tensors (a key block: K and V).
///
/// - `per_block`: a block is one message. The fewest messages.
/// - `per_tensor`: a tensor of a block is a message of its own, so that it can leave as soon as it is there, while the
///   next one is still being computed (the early hand-over of WallFacer, arXiv 2407.00611). The same bytes; up to three
///   messages for each one that carries blocks of its sender.
enum class operand_messages : std::uint8_t { per_block, per_tensor };

[[nodiscard]] constexpr const char* name_of(operand_messages how) noexcept {
  return how == operand_messages::per_block ? "together" : "by_tensor";
}

/// Which of the operator's calls a schedule serves, and which side travels in it.
///
/// - `forward`: query and key operands in, query partials (output and log-sum-exp) home.
/// - `circulate_keys`: backward in which K, V and the partials of dK and dV travel.
/// - `circulate_queries`: backward in which Q, dO, lse, delta and the partials of dQ travel.
///
/// Backward passes have partials on both sides.
enum class pass : std::uint8_t { forward, circulate_keys, circulate_queries };

[[nodiscard]] constexpr side travelling_side(pass p) noexcept {
  return p == pass::circulate_queries ? side::query : side::key;
}
[[nodiscard]] constexpr side other_side(side s) noexcept { return s == side::query ? side::key : side::query; }
[[nodiscard]] constexpr bool has_partials(pass p, side s) noexcept { return s == side::query || p != pass::forward; }
[[nodiscard]] constexpr const char* name_of(pass p) noexcept {
  return p == pass::forward ? "forward" : p == pass::circulate_keys ? "circulate_keys" : "circulate_queries";
}

/// The unit of every schedule: one side's tensors of one chunk of one shard, for one slice of the heads.
///
/// Rank i owns shard i, with all its chunks and slices. Shards are cut along the sequence into chunks as heads are cut
/// into slices, but not by topologies: these write whole shards, which are chunk 0 of 1, and `refine` cuts them. Which
/// tokens a chunk has, the layout says. Takes 12 bytes.
struct block {
  orrery::schedule::side side;
  std::uint16_t chunk;
  int shard;
  int slice;

  constexpr bool operator==(const block&) const = default;
};

/// The most chunks into which a shard can be cut.
inline constexpr int most_chunks = 65535;
/// The most chunks that an operator's layout may cut the shards of all ranks into: a relation has a bit for each pair.
inline constexpr int most_chunks_of_world = 1 << 15;

/// Blocks of one side: those of the `count` shards first, first + stride, ..., each for the `slices` slices of the
/// heads from `slice` on. A builder takes shards modulo the world, so `key(rank - 1)` is right on rank 0, too. In a
/// program whose shards are cut into chunks, they are chunk `chunk` of each shard.
struct blocks {
  orrery::schedule::side side;
  int first;
  int count = 1;
  int stride = 1;
  int slice = 0;
  int slices = 1;
  int chunk = 0;

  constexpr blocks(orrery::schedule::side s, int first_shard, int shards = 1, int shard_stride = 1, int first_slice = 0,
                   int slice_count = 1, int of_chunk = 0) noexcept
      : side{s},
        first{first_shard},
        count{shards},
        stride{shard_stride},
        slice{first_slice},
        slices{slice_count},
        chunk{of_chunk} {}
  // NOLINTNEXTLINE(google-explicit-constructor): one block is a range of blocks
  constexpr blocks(const block& b) noexcept : side{b.side}, first{b.shard}, slice{b.slice}, chunk{b.chunk} {}

  /// The same shards in another slice of the heads.
  [[nodiscard]] constexpr blocks in_slice(int other) const noexcept {
    return {side, first, count, stride, other, 1, chunk};
  }
  /// Another chunk of each of the same shards.
  [[nodiscard]] constexpr blocks in_chunk(int other) const noexcept {
    return {side, first, count, stride, slice, slices, other};
  }
};

[[nodiscard]] constexpr blocks query(int shard) noexcept { return {side::query, shard}; }
[[nodiscard]] constexpr blocks key(int shard) noexcept { return {side::key, shard}; }
[[nodiscard]] constexpr blocks queries(int first, int count, int stride = 1) noexcept {
  return {side::query, first, count, stride};
}
[[nodiscard]] constexpr blocks keys(int first, int count, int stride = 1) noexcept {
  return {side::key, first, count, stride};
}

}  // namespace orrery::schedule

namespace orrery {
using schedule::key;
using schedule::keys;
using schedule::name_of;
using schedule::operand_messages;
using schedule::pass;
using schedule::queries;
using schedule::query;
}  // namespace orrery

namespace orrery::detail {
using namespace orrery::schedule;
}  // namespace orrery::detail
