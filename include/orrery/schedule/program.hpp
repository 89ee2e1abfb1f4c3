// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <cstdint>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"

namespace orrery::schedule {

/// A slot number that means: none.
inline constexpr int no_slot = -1;
/// A peer that means: nobody (an exchange that only sends, or only receives).
inline constexpr int no_rank = -1;

/// A block and the slot that it gets there: the slot into which it is received, or, in a tile, the slot of the partial
/// that begins with this tile (`no_slot` if it goes on, is at home or has no partial).
///
/// Slots are buffers of one block each, numbered from 0 for each (side, payload). A block's home is no slot.
struct held_block {
  orrery::schedule::block block;
  int slot;

  constexpr bool operator==(const held_block&) const = default;
};

/// Entries [first, first + count) of one of a program's lists.
struct range {
  int first;
  int count;

  [[nodiscard]] constexpr int end() const noexcept { return first + count; }
  constexpr bool operator==(const range&) const = default;
};

/// One message each way, posted together at the beginning of step `posted`: `sent` blocks to rank `to`, `received`
/// blocks from rank `from`. It must have completed before step `complete_before`; from that step on, what was received
/// is usable and what was sent may be overwritten.
///
/// Within a lane, each pair of ranks sends and receives in one order; exchanges in different lanes do not wait for each
/// other.
struct exchange {
  int to;
  int from;
  int lane;
  orrery::schedule::payload payload;
  int posted;
  int complete_before;
  range sent;
  range received;

  constexpr bool operator==(const exchange&) const = default;
};

/// All the pairs of `queries` × `keys`, blocks of one slice of the heads, that the rank computes in one step.
struct tile {
  range queries;
  range keys;

  [[nodiscard]] constexpr bool empty() const noexcept { return queries.count == 0 || keys.count == 0; }
  constexpr bool operator==(const tile&) const = default;
};

/// In this order: the exchanges in `completions` are awaited and their partials merged, `exchanges` are posted, then
/// the tile is computed while they fly.
struct step {
  range completions;
  range exchanges;
  orrery::schedule::tile tile;

  constexpr bool operator==(const step&) const = default;
};

enum class collective_kind : std::uint8_t { all_gather, all_to_all, reduce_scatter };

/// A remark that some exchanges of one step, taken together over a group of ranks, are a collective, so that a
/// transport may use its native call. The exchanges are the meaning.
struct collective {
  collective_kind kind;
  int first_rank;
  int ranks;
  int rank_stride;
  range exchanges;

  constexpr bool operator==(const collective&) const = default;
};

/// One rank's schedule: a list of steps, and one last round of completions after them (`final_completions`).
/// Written with `builder`; `finish` (or `program_of`) then adds the completions and the slots.
///
/// Where a rank finds a block follows from the steps: an operand in the slot into which it was received last, or at
/// home; a partial in the slot where it began. A partial that arrives is merged into the one that this rank has begun
/// for the same block (at home: into the result); if there is none, it becomes that.
struct program {
  int rank = 0;
  int world = 1;
  int slices = 1;
  int chunks = 1;  ///< of each shard, at most `most_chunks`; topologies write 1, and `refine` more
  orrery::schedule::pass pass = orrery::schedule::pass::forward;

  list<step> steps;
  range final_completions{0, 0};
  list<exchange> exchanges;   ///< in the order in which they are posted
  list<int> completions;      ///< indices of exchanges, in the order in which they are awaited
  list<block> sent;           ///< blocks of all exchanges
  list<held_block> received;  ///< blocks of all exchanges
  list<held_block> queries;   ///< query blocks of all tiles
  list<held_block> keys;      ///< key blocks of all tiles
  list<collective> collectives;
  std::array<int, 4> slots{};  ///< number of slots, at [2 * side + payload]

  [[nodiscard]] constexpr int& slots_of(side s, payload c) noexcept {
    return slots[2 * static_cast<unsigned>(s) + static_cast<unsigned>(c)];
  }
  [[nodiscard]] constexpr int slots_of(side s, payload c) const noexcept {
    return slots[2 * static_cast<unsigned>(s) + static_cast<unsigned>(c)];
  }

  /// The same steps, exchanges, tiles and slots. Collectives are remarks and lanes' numbers are names, but here both
  /// count.
  constexpr bool operator==(const program&) const = default;
};

}  // namespace orrery::schedule

namespace orrery {
using schedule::program;
}  // namespace orrery
