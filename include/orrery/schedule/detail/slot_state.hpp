// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// Which block is in which slot of one rank, as its program is walked through: the one place that knows how a step
/// finds its blocks. The verifier and the executor both ask it.
class slot_state {
 public:
  static constexpr int none = -1;

  /// One slot and what it holds.
  struct place {
    block what;
    bool held;      ///< it holds an operand or a partial, or one is arriving
    bool listed;    ///< and can be found by its block
    int usable;     ///< first step in which it may be read
    int free_from;  ///< first step in which it may be written
    int next;  ///< a link to another slot that holds another slice of the same chunk, or the same block from earlier
  };

  /// The slots of one side and payload. A link is 1 + a slot or `end`, so that zeroed memory needs no loop.
  struct kind {
    place* places;
    int slots;
    int* newest;  ///< for each chunk a link to the slot that was filled last; 0 if there has been none
    int chunks;   ///< of each shard

    static constexpr int end = -1;

    /// The slot in which `what` can be read in `step`, the one that was filled last if there are several; or none.
    [[nodiscard]] constexpr int find(const block& what, int step) const {
      int link = newest[what.shard * chunks + what.chunk];
      while (link > 0 && (places[link - 1].what.slice != what.slice || places[link - 1].usable > step))
        link = places[link - 1].next;
      return link > 0 ? link - 1 : none;
    }

    /// True if a block of this chunk has ever been in a slot of this kind.
    [[nodiscard]] constexpr bool ever_held(const block& what) const {
      return newest[what.shard * chunks + what.chunk] != 0;
    }

    /// The slot is taken by `what`, which is on its way and cannot be found.
    constexpr void reserve(int slot, const block& what, int free_from) {
      places[slot] = {what, true, false, free_from, free_from, end};
    }

    /// The slot holds `what`, to be found from step `usable` on.
    constexpr void fill(int slot, const block& what, int usable) {
      if (places[slot].listed) forget(slot);
      int& last = newest[what.shard * chunks + what.chunk];
      places[slot] = {what, true, true, usable, usable, last == 0 ? end : last};
      last = slot + 1;
    }

    /// The slot is empty; its block can no longer be found.
    constexpr void forget(int slot) {
      if (places[slot].listed) {
        int* link = &newest[places[slot].what.shard * chunks + places[slot].what.chunk];
        while (*link != slot + 1) link = &places[*link - 1].next;
        *link = places[slot].next;
      }
      places[slot].held = places[slot].listed = false;
    }
  };

  constexpr explicit slot_state(const program& p)
      : places_(p.slots[0] + p.slots[1] + p.slots[2] + p.slots[3]), newest_(slot_kinds * p.world * p.chunks) {
    place* places = places_.items;
    int* newest = newest_.items;
    for (const side s : {side::query, side::key}) {
      for (const payload c : {payload::operand, payload::partial}) {
        kinds[static_cast<unsigned>(s)][static_cast<unsigned>(c)] = {places, p.slots_of(s, c), newest, p.chunks};
        places += p.slots_of(s, c);
        newest += p.world * p.chunks;
      }
    }
  }
  slot_state(const slot_state&) = delete;
  slot_state& operator=(const slot_state&) = delete;
  constexpr ~slot_state() = default;

  [[nodiscard]] constexpr kind& of(slot_kind k) noexcept { return kinds[k / 2][k % 2]; }

  kind kinds[2][2]{};  ///< at [side][payload]: a function would cost a compiler two evaluation steps for each block

 private:
  list<place> places_;
  list<int> newest_;
};

}  // namespace orrery::schedule
