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
      const int kind = residency::kind_of(s, cargo::partial);
      for (int slot = 0; slot < here.slots(kind); ++slot) {
        const residency::place& left = here.at(kind, slot);
        if (left.held) return subject_.refuse(fault::partial_stranded, p.rank, steps, left.what);
      }
    }
    return true;
  }

  /// One more than the highest lane that was met.
  [[nodiscard]] constexpr int lanes() const noexcept { return lanes_; }

 private:
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
      for (int r = done.received.first; r < done.received.end(); ++r) {
        const held_block& arrived = p.received.items[r];
        const int kind = residency::kind_of(arrived.block.side, cargo::partial);
        // It may be merged: into the result at home, or into what this rank has begun. Else it is found from now on.
        here.forget(kind, arrived.slot);
        if (arrived.block.shard == p.rank || here.find(kind, arrived.block, i) != none) continue;
        here.fill(kind, arrived.slot, arrived.block, i);
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
      const int sent_end = x.sent.end();
      for (int s = x.sent.first; s < sent_end; ++s) {
        if (!(x.cargo == cargo::operand ? read(p, here, i, p.sent.items[s], x.complete_before)
                                        : send_partial(p, here, i, p.sent.items[s], x.complete_before))) {
          return false;
        }
      }
      const int received_end = x.received.end();
      for (int r = x.received.first; r < received_end; ++r) {
        if (!receive(p, here, i, p.received.items[r], x)) return false;
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

  constexpr bool receive(const program& p, residency& here, int i, const held_block& arriving, const exchange& x) {
    if (!exists(p, arriving.block)) return subject_.refuse(fault::block_outside_world, p.rank, i, arriving.block);
    const int kind = residency::kind_of(arriving.block.side, x.cargo);
    if (arriving.slot < 0 || arriving.slot >= here.slots(kind))
      return subject_.refuse(fault::slot_missing, p.rank, i, arriving.block);
    const residency::place& slot = here.at(kind, arriving.slot);
    if (slot.free_from > i || (x.cargo == cargo::partial && slot.held)) {
      return subject_.refuse(fault::slot_overwritten, p.rank, i, slot.what);
    }
    if (x.cargo == cargo::operand) {
      here.fill(kind, arriving.slot, arriving.block, x.complete_before);
    } else {
      here.reserve(kind, arriving.slot, arriving.block, x.complete_before);
    }
    return true;
  }

  constexpr bool read(const program& p, residency& here, int i, const block& what, int until) {
    if (what.shard < 0 || what.shard >= p.world || what.slice < 0 || what.slice >= p.slices) {
      return subject_.refuse(fault::block_outside_world, p.rank, i, what);
    }
    if (what.shard == p.rank) return true;
    const int kind = residency::kind_of(what.side, cargo::operand);
    const int slot = here.find(kind, what, i);
    if (slot == none) {
      const bool overwritten = here.was_here(kind, what) && here.find(kind, what, never) == none;
      return subject_.refuse(overwritten ? fault::slot_overwritten : fault::operand_missing, p.rank, i, what);
    }
    residency::place& place = here.at(kind, slot);
    if (place.free_from < until) place.free_from = until;
    return true;
  }

  constexpr bool send_partial(const program& p, residency& here, int i, const block& what, int until) {
    if (!exists(p, what)) return subject_.refuse(fault::block_outside_world, p.rank, i, what);
    if (what.shard == p.rank) return subject_.refuse(fault::partial_leaves_home, p.rank, i, what);
    const int kind = residency::kind_of(what.side, cargo::partial);
    const int slot = here.find(kind, what, i);
    if (slot == none) return subject_.refuse(fault::partial_not_held, p.rank, i, what);
    here.forget(kind, slot);
    here.at(kind, slot).free_from = until;
    return true;
  }

  constexpr bool compute(const program& p, residency& here, int i, const held_block* holders, const range& which,
                         side s, int slice) {
    const int end = which.end();
    for (int b = which.first; b < end; ++b) {
      const block& what = holders[b].block;
      if (what.side != s || what.slice != slice) return subject_.refuse(fault::sides_confused, p.rank, i, what);
      if (!read(p, here, i, what, i + 1)) return false;
      if (what.shard == p.rank || !has_partials(p.pass, s)) continue;
      const int kind = residency::kind_of(s, cargo::partial);
      if (here.find(kind, what, i) != none) continue;
      if (holders[b].slot < 0 || holders[b].slot >= here.slots(kind))
        return subject_.refuse(fault::slot_missing, p.rank, i, what);
      const residency::place& slot = here.at(kind, holders[b].slot);
      if (slot.held || slot.free_from > i) return subject_.refuse(fault::slot_overwritten, p.rank, i, slot.what);
      here.fill(kind, holders[b].slot, what, i);
    }
    return true;
  }

  proof_subject& subject_;
  int lanes_ = 1;
};

}  // namespace orrery
