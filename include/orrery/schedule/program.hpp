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

/// Entries [first, first + count) of one of a program's lists. A loop over it visits their indices.
struct range {
  int first;
  int count;

  /// An index into the list, as an iterator.
  struct index {
    int value;

    // NOLINTNEXTLINE(google-explicit-constructor): an index is a number
    constexpr operator int() const noexcept { return value; }
    constexpr int operator*() const noexcept { return value; }
    constexpr index& operator++() noexcept { return ++value, *this; }
  };
  [[nodiscard]] constexpr index begin() const noexcept { return {first}; }
  [[nodiscard]] constexpr index end() const noexcept { return {first + count}; }
  [[nodiscard]] constexpr bool contains(int i) const noexcept { return i >= first && i < first + count; }
  constexpr bool operator==(const range&) const = default;
};

/// Some neighbouring entries of one of a program's lists. Valid until the list grows.
///
/// Less than `std::span`, which costs a compiler many evaluation steps. The proofs, which must save them, write
/// `for (auto [b, end] = p.sent_by(x); b != end; ++b)`.
template <class T>
struct entries {
  T* first;
  T* last;

  [[nodiscard]] constexpr T* begin() const noexcept { return first; }
  [[nodiscard]] constexpr T* end() const noexcept { return last; }
  [[nodiscard]] constexpr int size() const noexcept { return static_cast<int>(last - first); }
  [[nodiscard]] constexpr bool empty() const noexcept { return first == last; }
  [[nodiscard]] constexpr T& operator[](int i) const noexcept { return first[i]; }
};

/// An exchange whose blocks travel with all their tensors.
inline constexpr int every_tensor = 0;

/// One message each way, posted together at the beginning of step `posted`: `sent` blocks to rank `to`, `received`
/// blocks from rank `from`. It must have completed before step `complete_before`; from that step on, what was received
/// is usable and what was sent may be overwritten.
///
/// Within a lane, each pair of ranks sends and receives in one order; exchanges in different lanes do not wait for each
/// other.
///
/// What a topology writes carries whole blocks. `split_by_tensor` makes exchanges of single tensors, after the proof.
struct exchange {
  int to;
  int from;
  int lane;
  orrery::schedule::payload payload;
  int posted;
  int complete_before;
  range sent;
  range received;
  int tensor;  ///< which one travels of its blocks' tensors: 1 + its index in `interaction::operands`; or every_tensor

  [[nodiscard]] constexpr bool carries(int index) const noexcept {
    return tensor == every_tensor || tensor == index + 1;
  }
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
  std::array<int, slot_kinds> slots{};  ///< number of slots of each `slot_kind`

  [[nodiscard]] constexpr int& slots_of(side s, payload c) noexcept { return slots[kind_of(s, c)]; }
  [[nodiscard]] constexpr int slots_of(side s, payload c) const noexcept { return slots[kind_of(s, c)]; }

  /// The blocks that an exchange sends.
  [[nodiscard]] constexpr entries<const block> sent_by(const exchange& x) const noexcept {
    return {sent.items + x.sent.first, sent.items + x.sent.first + x.sent.count};
  }
  /// The blocks that an exchange receives, and their slots.
  [[nodiscard]] constexpr entries<const held_block> received_by(const exchange& x) const noexcept {
    return {received.items + x.received.first, received.items + x.received.first + x.received.count};
  }
  [[nodiscard]] constexpr entries<held_block> received_by(const exchange& x) noexcept {
    return {received.items + x.received.first, received.items + x.received.first + x.received.count};
  }
  /// The query blocks of a tile, and the slots of the partials that begin with it.
  [[nodiscard]] constexpr entries<const held_block> queries_of(const tile& t) const noexcept {
    return {queries.items + t.queries.first, queries.items + t.queries.first + t.queries.count};
  }
  [[nodiscard]] constexpr entries<held_block> queries_of(const tile& t) noexcept {
    return {queries.items + t.queries.first, queries.items + t.queries.first + t.queries.count};
  }
  /// The key blocks of a tile, and the slots of the partials that begin with it.
  [[nodiscard]] constexpr entries<const held_block> keys_of(const tile& t) const noexcept {
    return {keys.items + t.keys.first, keys.items + t.keys.first + t.keys.count};
  }
  [[nodiscard]] constexpr entries<held_block> keys_of(const tile& t) noexcept {
    return {keys.items + t.keys.first, keys.items + t.keys.first + t.keys.count};
  }
  /// The exchanges that a step posts, or that are marked as a collective.
  [[nodiscard]] constexpr entries<const exchange> exchanges_of(const step& s) const noexcept {
    return {exchanges.items + s.exchanges.first, exchanges.items + s.exchanges.first + s.exchanges.count};
  }
  [[nodiscard]] constexpr entries<const exchange> exchanges_of(const collective& c) const noexcept {
    return {exchanges.items + c.exchanges.first, exchanges.items + c.exchanges.first + c.exchanges.count};
  }
  /// The indices of the exchanges that complete before step `index`; after the last step if `index` is their number.
  [[nodiscard]] constexpr entries<const int> completed_before(int index) const noexcept {
    const range& which = index < steps.count ? steps.items[index].completions : final_completions;
    return {completions.items + which.first, completions.items + which.first + which.count};
  }

  /// The same steps, exchanges, tiles and slots. Collectives are remarks and lanes' numbers are names, but here both
  /// count.
  constexpr bool operator==(const program&) const = default;
};

}  // namespace orrery::schedule

namespace orrery {
using schedule::program;
}  // namespace orrery
