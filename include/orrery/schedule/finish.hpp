// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

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
    unsigned kind;  ///< index into program::slots
    int born;
    int usable;  ///< first step in which it may be read
    int last;
    int older;  ///< the next older life of the same shard
    int next_to_die;
  };

  /// The newest life of each shard of a kind.
  constexpr int* newest(unsigned kind) { return newest_.items + kind * static_cast<unsigned>(program_.world); }

  /// Index of a new life, which is `holder`'s from now on.
  constexpr int begin_life(held_block& holder, unsigned kind, int born, int usable, int last, int older) {
    lives_.items[count_] = {&holder, kind, born, usable, last, older, none};
    return count_++;
  }

  /// The newest life of `what` that can be read in `step`, in the chain that begins with `index`, becomes at least so
  /// long.
  constexpr void use_operand(const block& what, int index, int step, int last) {
    life* const lives = lives_.items;
    while (index != none && (lives[index].usable > step || lives[index].holder->block.slice != what.slice))
      index = lives[index].older;
    if (index != none && lives[index].last < last) lives[index].last = last;
  }

  /// The link to the partial that is under way for `what`, or to none, in the chain that `link` leads to.
  constexpr int& open_partial(const block& what, int* link) {
    while (*link != none && lives_.items[*link].holder->block.slice != what.slice) link = &lives_.items[*link].older;
    return *link;
  }

  constexpr void find_lives() {
    const int steps = program_.steps.count;
    for (int i = 0; i <= steps; ++i) {
      merge_arrivals(i < steps ? program_.steps.items[i].completions : program_.final_completions);
      if (i == steps) return;
      const step& now = program_.steps.items[i];
      for (int e = now.exchanges.first; e < now.exchanges.first + now.exchanges.count; ++e)
        post(program_.exchanges.items[e]);
      if (now.tile.empty()) continue;
      compute(i, program_.queries.items, now.tile.queries, side::query);
      compute(i, program_.keys.items, now.tile.keys, side::key);
    }
  }

  constexpr void merge_arrivals(const range& completions) {
    for (int c = completions.first; c < completions.first + completions.count; ++c) {
      const exchange& done = program_.exchanges.items[program_.completions.items[c]];
      if (done.cargo == cargo::operand) continue;
      for (int r = done.received.first; r < done.received.first + done.received.count; ++r) {
        held_block& arrived = program_.received.items[r];
        if (arrived.block.shard == program_.rank) continue;
        const unsigned kind = residency::kind_of(arrived.block.side, cargo::partial);
        int& open = open_partial(arrived.block, newest(kind) + arrived.block.shard);
        if (open != none) continue;
        // With nothing to merge with, where it landed becomes the running partial.
        open = arrived.slot;
        lives_.items[open].last = program_.steps.count;
      }
    }
  }

  constexpr void post(const exchange& posted) {
    const int busy_until = posted.complete_before - 1;
    const unsigned c = static_cast<unsigned>(posted.cargo);
    int* const heads[] = {newest(c), newest(2 + c)};  // of each side
    for (int s = posted.sent.first; s < posted.sent.first + posted.sent.count; ++s) {
      const block& what = program_.sent.items[s];
      int* const head = heads[static_cast<unsigned>(what.side)] + what.shard;
      if (posted.cargo == cargo::operand) {
        if (what.shard != program_.rank) use_operand(what, *head, posted.posted, busy_until);
      } else if (int& open = open_partial(what, head); open != none) {
        lives_.items[open].last = busy_until;
        open = lives_.items[open].older;
      }
    }
    for (int r = posted.received.first; r < posted.received.first + posted.received.count; ++r) {
      held_block& what = program_.received.items[r];
      const unsigned s = static_cast<unsigned>(what.block.side);
      int& head = heads[s][what.block.shard];
      const int older = posted.cargo == cargo::operand ? head : none;  // a partial is chained when it has arrived
      what.slot = begin_life(what, 2 * s + c, posted.posted, posted.complete_before, busy_until, older);
      if (posted.cargo == cargo::operand) head = what.slot;
    }
  }

  constexpr void compute(int step, held_block* holders, const range& which, side s) {
    const bool begins_partials = has_partials(program_.pass, s);
    const unsigned partial = residency::kind_of(s, cargo::partial);
    int* const newest_operand = newest(residency::kind_of(s, cargo::operand));
    int* const newest_partial = newest(partial);
    for (int b = which.first; b < which.first + which.count; ++b) {
      held_block& what = holders[b];
      if (what.block.shard == program_.rank) continue;
      use_operand(what.block, newest_operand[what.block.shard], step, step);
      if (!begins_partials) continue;
      int& open = open_partial(what.block, newest_partial + what.block.shard);
      // Until it is sent: one that never is keeps its slot, and `verify` finds it there.
      if (open == none) open = begin_life(what, partial, step, step, program_.steps.count, none);
    }
  }

  /// Lives are in the order of their birth; hands out slots in that order, the most recently freed first.
  constexpr void place_lives() {
    const int steps = program_.steps.count;
    list<int> dying_in(steps + 1);
    int* const dying = dying_in.items;
    life* const lives = lives_.items;
    list<int> free_slots[4];
    int freed_up_to = 0;
    for (int index = 1; index < count_; ++index) {
      life& placed = lives[index];
      for (; freed_up_to < placed.born; ++freed_up_to) {
        for (int dead = dying[freed_up_to]; dead != none; dead = lives[dead].next_to_die) {
          *free_slots[lives[dead].kind].extend(1) = lives[dead].holder->slot;
        }
      }
      list<int>& available = free_slots[placed.kind];
      placed.holder->slot = available.count > 0 ? available.items[--available.count] : program_.slots[placed.kind]++;
      int& death = dying[placed.last < placed.born ? placed.born : placed.last];
      placed.next_to_die = death;
      death = index;
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
