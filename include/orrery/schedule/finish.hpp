// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "orrery/schedule/program.hpp"
#include "orrery/schedule/residency.hpp"

namespace orrery {

/// Gives every block that a program receives, and every partial that it begins, a slot, and reuses the slot when its
/// last reader is done: a register allocation over the program's steps.
///
/// A received operand lives from the step in which its exchange is posted until its last tile, or until the last
/// exchange that sends it on completes. A partial lives from its first tile or arrival until it has been sent. Costs
/// time and memory linear in the number of blocks. The result is not trusted: `verify` proves it.
class slot_assignment {
 public:
  constexpr explicit slot_assignment(program& p)
      : program_{p}, lives_(1 + p.received.count + p.queries.count + p.keys.count), newest_(4 * p.world) {}

  constexpr void run() {
    find_lives();
    place_lives();
  }

 private:
  static constexpr int none = 0;  // the life of index 0 is nobody's: zeroed memory needs no loop

  /// One block in one slot, from step `born` to step `last`.
  struct life {
    held_block* holder;
    int kind;  ///< index into program::slots
    int born;
    int usable;  ///< first step in which it may be read
    int last;
    int older;  ///< the next older life of the same shard
    int next_to_die;
  };

  /// The newest life of each shard, one list of shards for each kind.
  constexpr int& newest(int kind, int shard) { return newest_.items[kind * program_.world + shard]; }

  constexpr int begin_life(held_block& holder, int kind, int born, int usable, int last) {
    lives_.items[count_] = {&holder, kind, born, usable, last, none, none};
    return count_++;
  }

  constexpr void chain(int index, int& head) {
    lives_.items[index].older = head;
    head = index;
  }

  /// The newest life of `what` that can be read in `step` becomes at least so long.
  constexpr void use_operand(const block& what, int step, int last) {
    if (what.shard == program_.rank) return;
    life* const lives = lives_.items;
    int index = newest(residency::kind_of(what.side, cargo::operand), what.shard);
    while (index != none && (lives[index].usable > step || lives[index].holder->block.slice != what.slice)) {
      index = lives[index].older;
    }
    if (index != none && lives[index].last < last) lives[index].last = last;
  }

  /// The link to the partial that is under way for `what`, or to none.
  constexpr int& open_partial(const block& what) {
    life* const lives = lives_.items;
    int* link = &newest(residency::kind_of(what.side, cargo::partial), what.shard);
    while (*link != none && lives[*link].holder->block.slice != what.slice) link = &lives[*link].older;
    return *link;
  }

  constexpr void find_lives() {
    const int steps = program_.steps.count;
    for (int i = 0; i <= steps; ++i) {
      merge_arrivals(i < steps ? program_.steps.items[i].completions : program_.final_completions);
      if (i == steps) return;
      const step& now = program_.steps.items[i];
      for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) post(program_.exchanges.items[e]);
      if (now.tile.empty()) continue;
      compute(i, program_.queries.items, now.tile.queries);
      compute(i, program_.keys.items, now.tile.keys);
    }
  }

  constexpr void merge_arrivals(const range& completions) {
    const int last = completions.end();
    for (int c = completions.first; c < last; ++c) {
      const exchange& done = program_.exchanges.items[program_.completions.items[c]];
      if (done.cargo == cargo::operand) continue;
      for (int r = done.received.first; r < done.received.end(); ++r) {
        held_block& arrived = program_.received.items[r];
        if (arrived.block.shard == program_.rank) continue;
        int& open = open_partial(arrived.block);
        if (open != none) continue;
        // With nothing to merge with, where it landed becomes the running partial.
        open = arrived.slot;
        lives_.items[open].last = program_.steps.count;
      }
    }
  }

  constexpr void post(const exchange& posted) {
    const int busy_until = posted.complete_before - 1;
    const int sent_end = posted.sent.end();
    for (int s = posted.sent.first; s < sent_end; ++s) {
      const block& what = program_.sent.items[s];
      if (posted.cargo == cargo::operand) {
        use_operand(what, posted.posted, busy_until);
      } else if (int& open = open_partial(what); open != none) {
        lives_.items[open].last = busy_until;
        open = lives_.items[open].older;
      }
    }
    const int received_end = posted.received.end();
    for (int r = posted.received.first; r < received_end; ++r) {
      held_block& what = program_.received.items[r];
      const int kind = residency::kind_of(what.block.side, posted.cargo);
      what.slot = begin_life(what, kind, posted.posted, posted.complete_before, busy_until);
      if (posted.cargo == cargo::operand) chain(what.slot, newest(kind, what.block.shard));
    }
  }

  constexpr void compute(int step, held_block* holders, const range& which) {
    const int end = which.end();
    for (int b = which.first; b < end; ++b) {
      held_block& what = holders[b];
      if (what.block.shard == program_.rank) continue;
      use_operand(what.block, step, step);
      if (!has_partials(program_.pass, what.block.side)) continue;
      int& open = open_partial(what.block);
      // Until it is sent: one that never is keeps its slot, and `verify` finds it there.
      if (open == none) {
        open = begin_life(what, residency::kind_of(what.block.side, cargo::partial), step, step, program_.steps.count);
      }
    }
  }

  /// Lives are in the order of their birth; hands out slots in that order, the most recently freed first.
  constexpr void place_lives() {
    const int steps = program_.steps.count;
    list<int> dying_in(steps + 1);
    int* const dying = dying_in.items;
    life* const lives = lives_.items;
    std::array<list<int>, 4> free_slots;
    int freed_up_to = 0;
    for (int index = 1; index < count_; ++index) {
      life& placed = lives[index];
      for (; freed_up_to < placed.born; ++freed_up_to) {
        for (int dead = dying[freed_up_to]; dead != none; dead = lives[dead].next_to_die) {
          free_slots[static_cast<unsigned>(lives[dead].kind)].push_back(lives[dead].holder->slot);
        }
      }
      list<int>& available = free_slots[static_cast<unsigned>(placed.kind)];
      placed.holder->slot =
          available.empty() ? program_.slots[static_cast<unsigned>(placed.kind)]++ : available.pop_back();
      const int death = placed.last < placed.born ? placed.born : placed.last;
      placed.next_to_die = dying[death];
      dying[death] = index;
    }
  }

  program& program_;
  list<life> lives_;
  int count_ = 1;
  list<int> newest_;
};

/// Lists for each step the exchanges that complete before it: a stable counting sort.
constexpr void order_completions(program& p) {
  const int steps = p.steps.count;
  const int exchanges = p.exchanges.count;
  const exchange* const posted = p.exchanges.items;
  list<int> counts(steps + 2);
  int* const count = counts.items;
  for (int e = 0; e < exchanges; ++e) ++count[posted[e].complete_before];
  int first = 0;
  for (int i = 0; i <= steps; ++i) {
    (i < steps ? p.steps.items[i].completions : p.final_completions) = {first, count[i]};
    const int next = first + count[i];
    count[i] = first;
    first = next;
  }
  p.completions = list<int>(exchanges);
  int* const completions = p.completions.items;
  for (int e = 0; e < exchanges; ++e) completions[count[posted[e].complete_before]++] = e;
}

/// Makes what a topology has written ready to be verified and run: orders the completions and assigns the slots.
/// To be called again after a program's exchanges, steps or tiles were changed.
constexpr void finish(program& p) {
  p.slots = {};
  order_completions(p);
  slot_assignment{p}.run();
}

}  // namespace orrery
