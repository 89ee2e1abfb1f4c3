// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/schedule/program.hpp"

namespace orrery {

/// Which block is in which slot of one rank, as its program is walked through: the one place that knows how a step
/// finds its blocks. The verifier and the executor both ask it.
class residency {
 public:
  static constexpr int none = -1;

  /// One slot and what it holds.
  struct place {
    block what;
    bool held;      ///< it holds an operand or a partial, or one is arriving
    bool listed;    ///< and can be found by its block
    int usable;     ///< first step in which it may be read
    int free_from;  ///< first step in which it may be written
    int next;       ///< 1 + another slot that holds another slice of the same shard, or the same block from earlier
  };

  constexpr explicit residency(const program& p)
      : world_{p.world},
        first_{0, p.slots[0], p.slots[0] + p.slots[1], p.slots[0] + p.slots[1] + p.slots[2],
               p.slots[0] + p.slots[1] + p.slots[2] + p.slots[3]},
        places_(first_[4]),
        newest_(4 * p.world),
        was_here_(4 * p.world) {}

  [[nodiscard]] static constexpr int kind_of(side s, cargo c) noexcept {
    return 2 * static_cast<int>(s) + static_cast<int>(c);
  }

  [[nodiscard]] constexpr int slots(int kind) const { return first_[kind + 1] - first_[kind]; }
  [[nodiscard]] constexpr place& at(int kind, int slot) { return places_.items[first_[kind] + slot]; }

  /// The slot in which `what` can be read in `step`, the one that was filled last if there are several; or none.
  [[nodiscard]] constexpr int find(int kind, const block& what, int step) const {
    const place* const places = places_.items + first_[kind];
    int slot = newest_.items[kind * world_ + what.shard] - 1;
    while (slot != none && (places[slot].what.slice != what.slice || places[slot].usable > step))
      slot = places[slot].next - 1;
    return slot;
  }

  /// Has a block of this shard ever been in a slot of this kind?
  [[nodiscard]] constexpr bool was_here(int kind, const block& what) const {
    return was_here_.items[kind * world_ + what.shard];
  }

  /// The slot is taken by `what`, which is on its way and cannot be found.
  constexpr void reserve(int kind, int slot, const block& what, int free_from) {
    at(kind, slot) = {what, true, false, free_from, free_from, 0};
  }

  /// The slot holds `what`, to be found from step `usable` on.
  constexpr void fill(int kind, int slot, const block& what, int usable) {
    place& filled = places_.items[first_[kind] + slot];
    if (filled.listed) forget(kind, slot);
    const int shard = kind * world_ + what.shard;
    was_here_.items[shard] = true;
    filled = {what, true, true, usable, usable, newest_.items[shard]};
    newest_.items[shard] = slot + 1;
  }

  /// The slot is empty; its block can no longer be found.
  constexpr void forget(int kind, int slot) {
    place& left = at(kind, slot);
    left.held = false;
    if (!left.listed) return;
    left.listed = false;
    int* link = &newest_.items[kind * world_ + left.what.shard];
    while (*link != slot + 1) link = &at(kind, *link - 1).next;
    *link = left.next;
  }

 private:
  int world_;
  int first_[5];  // of each kind in places_
  list<place> places_;
  list<int> newest_;  // for each (kind, shard), 1 + the first slot of a chain, so that zeroed memory needs no loop
  list<bool> was_here_;
};

}  // namespace orrery
