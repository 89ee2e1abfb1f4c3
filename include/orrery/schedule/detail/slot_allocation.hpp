// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// Gives every block that a program receives, and every partial that it begins, a slot, and reuses the slot when its
/// last reader is done: a register allocation over the program's steps.
///
/// A received operand lives from the step in which its exchange is posted until its last tile, or until the last
/// exchange that sends it on completes. A partial lives from its first tile or arrival until it has been sent. Costs
/// time and memory linear in the number of blocks. The result is not trusted: `verify` proves it.
class slot_assignment {
 public:
  constexpr explicit slot_assignment(program& p)
      : program_{p},
        lives_(1 + p.received.count + p.queries.count + p.keys.count),
        newest_(slot_kinds * p.world * p.chunks) {
    int* newest = newest_.items;
    for (const side s : {side::query, side::key}) {
      for (const payload c : {payload::operand, payload::partial}) {
        kinds_[static_cast<unsigned>(s)][static_cast<unsigned>(c)] = {newest, &p.slots[kind_of(s, c)], {}};
        newest += p.world * p.chunks;
      }
    }
  }

  constexpr void run() {
    find_lives();
    place_lives();
  }

 private:
  static constexpr auto operand = static_cast<unsigned>(payload::operand);
  static constexpr auto partial = static_cast<unsigned>(payload::partial);
  static constexpr int none = 0;  // the life of index 0 is nobody's: zeroed memory needs no loop

  /// The slots of one side and payload.
  struct kind {
    int* newest;  ///< for each shard the newest life
    int* slots;   ///< their number
    list<int> free;
  };

  /// One block in one slot, from step `born` to step `last`.
  struct life {
    held_block* holder;
    slot_assignment::kind* kind;
    int born;
    int usable;  ///< first step in which it may be read
    int last;
    int older;  ///< the next older life of the same chunk
    int next_to_die;
  };

  /// The newest life of `what` that can be read in `step` becomes at least so long.
  constexpr void use_operand(const block& what, int step, int last) {
    if (what.shard == program_.rank) return;
    life* used = lives_.items +
                 kinds_[static_cast<unsigned>(what.side)][operand].newest[what.shard * program_.chunks + what.chunk];
    while (used != lives_.items && (used->usable > step || used->holder->block.slice != what.slice))
      used = lives_.items + used->older;
    if (used->last < last) used->last = last;  // nobody's, too
  }

  /// The link to the partial that is under way for `what`, or to none.
  constexpr int& open_partial(const block& what) {
    int* link = kinds_[static_cast<unsigned>(what.side)][partial].newest + what.shard * program_.chunks + what.chunk;
    while (*link != none && lives_.items[*link].holder->block.slice != what.slice) link = &lives_.items[*link].older;
    return *link;
  }

  constexpr void find_lives() {
    const int steps = program_.steps.count;
    for (int i = 0; i <= steps; ++i) {
      merge_arrivals(i);
      if (i == steps) return;
      const step& now = program_.steps.items[i];
      for (auto [posted, end] = program_.exchanges_of(now); posted != end; ++posted) post(*posted);
      if (now.tile.queries.count == 0 || now.tile.keys.count == 0) continue;
      compute(i, program_.queries_of(now.tile), side::query);
      compute(i, program_.keys_of(now.tile), side::key);
    }
  }

  constexpr void merge_arrivals(int step) {
    for (auto [e, end] = program_.completed_before(step); e != end; ++e) {
      const exchange& done = program_.exchanges.items[*e];
      if (done.payload == payload::operand) continue;
      for (auto [arrived, last] = program_.received_by(done); arrived != last; ++arrived) {
        if (arrived->block.shard == program_.rank) continue;
        int& open = open_partial(arrived->block);
        if (open != none) continue;
        // With nothing to merge with, where it landed becomes the running partial.
        open = arrived->slot;
        lives_.items[open].last = program_.steps.count;
      }
    }
  }

  constexpr void post(const exchange& posted) {
    const int busy_until = posted.complete_before - 1;
    for (auto [what, end] = program_.sent_by(posted); what != end; ++what)
      posted.payload == payload::operand ? use_operand(*what, posted.posted, busy_until) : give_up(*what, busy_until);
    for (auto [what, end] = program_.received_by(posted); what != end; ++what) {
      kind& of = kinds_[static_cast<unsigned>(what->block.side)][static_cast<unsigned>(posted.payload)];
      int& newest = of.newest[what->block.shard * program_.chunks + what->block.chunk];
      // A partial is chained when it has arrived.
      lives_.items[count_] = {what,          &of,
                              posted.posted, posted.complete_before,
                              busy_until,    posted.payload == payload::operand ? newest : none,
                              none};
      what->slot = count_++;
      if (posted.payload == payload::operand) newest = what->slot;
    }
  }

  /// The partial that is under way for `what` is sent.
  constexpr void give_up(const block& what, int busy_until) {
    int& open = open_partial(what);
    if (open == none) return;
    lives_.items[open].last = busy_until;
    open = lives_.items[open].older;
  }

  constexpr void compute(int step, entries<held_block> blocks, side s) {
    const bool begins_partials = has_partials(program_.pass, s);
    kind* const partials = &kinds_[static_cast<unsigned>(s)][partial];
    for (auto [what, end] = blocks; what != end; ++what) {
      use_operand(what->block, step, step);
      if (!begins_partials || what->block.shard == program_.rank) continue;
      int& open = open_partial(what->block);
      if (open != none) continue;
      // Until it is sent: one that never is keeps its slot, and `verify` finds it there.
      lives_.items[count_] = {what, partials, step, step, program_.steps.count, none, none};
      open = count_++;
    }
  }

  /// Lives are in the order of their birth; hands out slots in that order, the most recently freed first.
  constexpr void place_lives() {
    const int steps = program_.steps.count;
    list<int> dying_in(steps + 1);
    int* const dying = dying_in.items;
    life* const lives = lives_.items;
    int freed_up_to = 0;
    for (life* placed = lives + 1; placed != lives + count_; ++placed) {
      for (; freed_up_to < placed->born; ++freed_up_to)
        for (int dead = dying[freed_up_to]; dead != none; dead = lives[dead].next_to_die)
          *lives[dead].kind->free.extend(1) = lives[dead].holder->slot;
      kind& of = *placed->kind;
      placed->holder->slot = of.free.count > 0 ? of.free.items[--of.free.count] : (*of.slots)++;
      int& death = dying[placed->last < placed->born ? placed->born : placed->last];
      placed->next_to_die = death;
      death = static_cast<int>(placed - lives);
    }
  }

  program& program_;
  list<life> lives_;
  int count_ = 1;
  list<int> newest_;
  kind kinds_[2][2]{};  // at [side][payload]
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
    first += count[i];
    count[i] = first - count[i];
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

}  // namespace orrery::schedule
