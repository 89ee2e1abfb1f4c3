// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/schedule/program.hpp"
#include "orrery/schedule/residency.hpp"
#include "orrery/verify/proof_subject.hpp"

namespace orrery {

/// Proves one rank alone, step by step: each block that a tile or an exchange reads is in a slot, has arrived, and
/// stays until the reading is done; each partial that is sent is held and given up; none remains at the end but at
/// home.
class rank_walk {
 public:
  constexpr explicit rank_walk(proof_subject& subject) : subject_{subject} {}

  /// Of a finished program.
  constexpr bool prove(const program& p) {
    residency here{p};
    const int steps = p.steps.count;
    const step* const step_of = p.steps.items;
    if (!all_exchanges_have_steps(p)) return false;
    for (int i = 0; i < steps; ++i) {
      if (!complete(p, here, i, step_of[i].completions) || !post(p, here, i, step_of[i].exchanges)) return false;
      const tile& t = step_of[i].tile;
      if (t.empty()) continue;
      const int slice = p.queries.items[t.queries.first].block.slice;
      if (!compute(p, here, i, p.queries.items, t.queries, side::query, slice)) return false;
      if (!compute(p, here, i, p.keys.items, t.keys, side::key, slice)) return false;
    }
    if (!complete(p, here, steps, p.final_completions)) return false;
    for (const side s : {side::query, side::key}) {
      const kind& partials = here.kinds[residency::kind_of(s, cargo::partial)];
      for (int slot = 0; slot < partials.slots; ++slot) {
        const residency::place& left = partials.places[slot];
        if (left.held) return subject_.refuse(fault::partial_stranded, p.rank, steps, left.what);
      }
    }
    return true;
  }

  /// One more than the highest lane that was met.
  [[nodiscard]] constexpr int lanes() const noexcept { return lanes_; }

 private:
  using kind = residency::kind;

  static constexpr int none = -1;
  static constexpr int most_lanes = 16;
  static constexpr int never = 1 << 30;

  /// Do the steps' ranges follow each other, so that every exchange is posted and awaited somewhere?
  constexpr bool all_exchanges_have_steps(const program& p) {
    int posted = 0;
    int completed = 0;
    for (int i = 0; i < p.steps.count; ++i) {
      const step& now = p.steps.items[i];
      if (now.exchanges.first != posted || now.completions.first != completed) {
        return subject_.refuse(fault::exchange_takes_no_step, p.rank, i, {}, p.rank);
      }
      posted = now.exchanges.end();
      completed = now.completions.end();
    }
    if (posted != p.exchanges.count || p.final_completions.first != completed ||
        p.final_completions.end() != p.exchanges.count || p.completions.count != p.exchanges.count) {
      return subject_.refuse(fault::exchange_takes_no_step, p.rank, p.steps.count, {}, p.rank);
    }
    return true;
  }

  constexpr bool complete(const program& p, residency& here, int i, const range& completions) {
    const int end = completions.end();
    for (int c = completions.first, before = none; c < end; ++c) {
      const int e = p.completions.items[c];
      const exchange& done = p.exchanges.items[e];
      // Increasing and each in its step: as none is left out, every exchange is completed exactly once.
      if (e <= before || done.complete_before != i) {
        return subject_.refuse(fault::exchange_takes_no_step, p.rank, done.posted, {},
                               done.to != nobody ? done.to : done.from);
      }
      before = e;
      if (done.cargo == cargo::operand) continue;
      for (int r = done.received.first; r < done.received.first + done.received.count; ++r) {
        const held_block& arrived = p.received.items[r];
        kind& partials = here.kinds[residency::kind_of(arrived.block.side, cargo::partial)];
        // It may be merged: into the result at home, or into what this rank has begun. Else it is found from now on.
        partials.forget(arrived.slot);
        if (arrived.block.shard == p.rank || partials.find(arrived.block, i) != none) continue;
        partials.fill(arrived.slot, arrived.block, i);
      }
    }
    return true;
  }

  constexpr bool post(const program& p, residency& here, int i, const range& exchanges) {
    const int end = exchanges.end();
    for (int e = exchanges.first; e < end; ++e) {
      const exchange& x = p.exchanges.items[e];
      if (x.posted != i || x.complete_before <= i || x.complete_before > p.steps.count) {
        return subject_.refuse(fault::exchange_takes_no_step, p.rank, i, {}, x.to != nobody ? x.to : x.from);
      }
      if (x.lane < 0 || x.lane >= most_lanes) return subject_.refuse(fault::lane_does_not_exist, p.rank, i, {}, x.lane);
      if (!is_peer(p, x.to) || (x.to == nobody && x.sent.count > 0))
        return subject_.refuse(fault::peer_outside_world, p.rank, i, {}, x.to);
      if (!is_peer(p, x.from) || (x.from == nobody && x.received.count > 0))
        return subject_.refuse(fault::peer_outside_world, p.rank, i, {}, x.from);
      if (x.lane >= lanes_) lanes_ = x.lane + 1;
      const unsigned c = static_cast<unsigned>(x.cargo);
      for (int s = x.sent.first; s < x.sent.first + x.sent.count; ++s) {
        const block& what = p.sent.items[s];
        kind& slots = here.kinds[2 * static_cast<unsigned>(what.side) + c];
        if (!(x.cargo == cargo::operand ? read(p, slots, i, what, x.complete_before)
                                        : send_partial(p, slots, i, what, x.complete_before))) {
          return false;
        }
      }
      for (int r = x.received.first; r < x.received.first + x.received.count; ++r) {
        const held_block& arriving = p.received.items[r];
        if (!receive(p, here.kinds[2 * static_cast<unsigned>(arriving.block.side) + c], i, arriving, x)) return false;
      }
    }
    return true;
  }

  [[nodiscard]] static constexpr bool is_peer(const program& p, int rank) {
    return rank == nobody || (rank >= 0 && rank < p.world && rank != p.rank);
  }
  [[nodiscard]] static constexpr bool exists(const program& p, const block& b) {
    return b.shard >= 0 && b.shard < p.world && b.slice >= 0 && b.slice < p.slices;
  }

  constexpr bool receive(const program& p, kind& slots, int i, const held_block& arriving, const exchange& x) {
    if (!exists(p, arriving.block)) return subject_.refuse(fault::block_outside_world, p.rank, i, arriving.block);
    if (arriving.slot < 0 || arriving.slot >= slots.slots)
      return subject_.refuse(fault::slot_missing, p.rank, i, arriving.block);
    const residency::place& slot = slots.places[arriving.slot];
    if (slot.free_from > i || (x.cargo == cargo::partial && slot.held))
      return subject_.refuse(fault::slot_overwritten, p.rank, i, slot.what);
    x.cargo == cargo::operand ? slots.fill(arriving.slot, arriving.block, x.complete_before)
                              : slots.reserve(arriving.slot, arriving.block, x.complete_before);
    return true;
  }

  constexpr bool read(const program& p, kind& operands, int i, const block& what, int until) {
    if (!exists(p, what)) return subject_.refuse(fault::block_outside_world, p.rank, i, what);
    if (what.shard == p.rank) return true;
    const int slot = operands.find(what, i);
    if (slot == none) {
      const bool overwritten = operands.was_here(what) && operands.find(what, never) == none;
      return subject_.refuse(overwritten ? fault::slot_overwritten : fault::operand_missing, p.rank, i, what);
    }
    if (operands.places[slot].free_from < until) operands.places[slot].free_from = until;
    return true;
  }

  constexpr bool send_partial(const program& p, kind& partials, int i, const block& what, int until) {
    if (!exists(p, what)) return subject_.refuse(fault::block_outside_world, p.rank, i, what);
    if (what.shard == p.rank) return subject_.refuse(fault::partial_leaves_home, p.rank, i, what);
    const int slot = partials.find(what, i);
    if (slot == none) return subject_.refuse(fault::partial_not_held, p.rank, i, what);
    partials.forget(slot);
    partials.places[slot].free_from = until;
    return true;
  }

  constexpr bool compute(const program& p, residency& here, int i, const held_block* holders, const range& which,
                         side s, int slice) {
    kind& operands = here.kinds[residency::kind_of(s, cargo::operand)];
    kind& partials = here.kinds[residency::kind_of(s, cargo::partial)];
    const bool adds_to_partials = has_partials(p.pass, s);
    for (int b = which.first; b < which.first + which.count; ++b) {
      const block& what = holders[b].block;
      if (what.side != s || what.slice != slice) return subject_.refuse(fault::sides_confused, p.rank, i, what);
      if (!read(p, operands, i, what, i + 1)) return false;
      if (!adds_to_partials || what.shard == p.rank || partials.find(what, i) != none) continue;
      if (holders[b].slot < 0 || holders[b].slot >= partials.slots)
        return subject_.refuse(fault::slot_missing, p.rank, i, what);
      const residency::place& slot = partials.places[holders[b].slot];
      if (slot.held || slot.free_from > i) return subject_.refuse(fault::slot_overwritten, p.rank, i, slot.what);
      partials.fill(holders[b].slot, what, i);
    }
    return true;
  }

  proof_subject& subject_;
  int lanes_ = 1;
};

}  // namespace orrery
