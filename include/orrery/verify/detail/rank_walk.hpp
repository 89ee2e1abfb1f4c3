// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/slot_state.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/verify/detail/message_search.hpp"
#include "orrery/verify/detail/proof_subject.hpp"
#include "orrery/verify/verdict.hpp"

namespace orrery::detail {

/// Proves one rank alone, step by step: each block that a tile or an exchange reads is in a slot, has arrived, and
/// stays until the reading is done; each partial that is sent is held and given up; none remains at the end but at
/// home.
class rank_walk {
 public:
  constexpr explicit rank_walk(proof_subject& subject) : subject_{subject} {}

  /// Proves a program whose slots are allocated. Returns false, and notes the fault, at the first that it finds.
  constexpr bool prove(const program& p) {
    slot_state here{p};
    const int steps = p.steps.count;
    const bool query_partials = has_partials(p.pass, side::query);
    const bool key_partials = has_partials(p.pass, side::key);
    const step* const step_of = p.steps.items;
    if (!all_exchanges_have_steps(p)) return false;
    for (int i = 0; i < steps; ++i) {
      if (!complete(p, here, i) || !post(p, here, i, step_of[i])) return false;
      const tile& t = step_of[i].tile;
      if (t.queries.count == 0 || t.keys.count == 0) continue;
      const int slice = p.queries.items[t.queries.first].block.slice;
      if (!compute(p, here, i, p.queries_of(t), side::query, slice, query_partials)) return false;
      if (!compute(p, here, i, p.keys_of(t), side::key, slice, key_partials)) return false;
    }
    if (!complete(p, here, steps)) return false;
    for (const side s : {side::query, side::key}) {
      const kind& partials = here.kinds[static_cast<unsigned>(s)][partial];
      for (int slot = 0; slot < partials.slots; ++slot) {
        const slot_state::place& left = partials.places[slot];
        if (left.held) return subject_.refuse(fault::partial_stranded, p.rank, steps, left.what);
      }
    }
    return true;
  }

  /// One more than the highest lane that was met.
  [[nodiscard]] constexpr int lanes() const noexcept { return lanes_; }

 private:
  using kind = slot_state::kind;

  static constexpr auto operand = static_cast<unsigned>(payload::operand);
  static constexpr auto partial = static_cast<unsigned>(payload::partial);
  static constexpr int none = -1;
  static constexpr int most_lanes = 16;
  static constexpr int never = 1 << 30;

  /// True if the steps' ranges follow each other, so that every exchange is posted and awaited somewhere.
  constexpr bool all_exchanges_have_steps(const program& p) {
    int posted = 0;
    int completed = 0;
    const step* const end = p.steps.items + p.steps.count;
    for (const step* now = p.steps.items; now != end;
         posted += now->exchanges.count, completed += now->completions.count, ++now)
      if (now->exchanges.first != posted || now->completions.first != completed)
        return subject_.refuse(fault::exchange_takes_no_step, p.rank, static_cast<int>(now - p.steps.items), {},
                               p.rank);
    if (posted != p.exchanges.count || p.final_completions.first != completed ||
        p.final_completions.end() != p.exchanges.count || p.completions.count != p.exchanges.count) {
      return subject_.refuse(fault::exchange_takes_no_step, p.rank, p.steps.count, {}, p.rank);
    }
    return true;
  }

  constexpr bool complete(const program& p, slot_state& here, int i) {
    int before = none;
    for (auto [e, end] = p.completed_before(i); e != end; ++e) {
      const exchange& done = p.exchanges.items[*e];
      // Increasing and each in its step: as none is left out, every exchange is completed exactly once.
      if (*e <= before || done.complete_before != i) {
        return subject_.refuse(fault::exchange_takes_no_step, p.rank, done.posted, {},
                               done.to != no_rank ? done.to : done.from);
      }
      before = *e;
      if (done.payload == payload::operand) continue;
      for (auto [arrived, last] = p.received_by(done); arrived != last; ++arrived) {
        kind& partials = here.kinds[static_cast<unsigned>(arrived->block.side)][partial];
        // It may be merged: into the result at home, or into what this rank has begun. Else it is found from now on.
        partials.forget(arrived->slot);
        if (arrived->block.shard == p.rank || partials.find(arrived->block, i) != none) continue;
        partials.fill(arrived->slot, arrived->block, i);
      }
    }
    return true;
  }

  constexpr bool post(const program& p, slot_state& here, int i, const step& now) {
    for (auto [x, end] = p.exchanges_of(now); x != end; ++x) {
      if (x->posted != i || x->complete_before <= i || x->complete_before > p.steps.count || x->lane < 0 ||
          x->lane >= most_lanes || x->tensor != every_tensor ||
          (x->to == no_rank ? x->sent.count > 0 : !is_peer(p, x->to)) ||
          (x->from == no_rank ? x->received.count > 0 : !is_peer(p, x->from)))
        return refuse_exchange(p, i, *x);
      if (x->lane >= lanes_) lanes_ = x->lane + 1;
      for (auto [what, last] = p.sent_by(*x); what != last; ++what)
        if (!(x->payload == payload::operand ? read(p, here, i, *what, x->complete_before)
                                             : send_partial(p, here, i, *what, x->complete_before)))
          return false;
      for (auto [what, last] = p.received_by(*x); what != last; ++what)
        if (!receive(p, here, i, *what, *x)) return false;
    }
    return true;
  }

  [[nodiscard]] static constexpr bool is_peer(const program& p, int rank) {
    return rank >= 0 && rank < p.world && rank != p.rank;
  }

  /// For an exchange that `post` does not let pass.
  constexpr bool refuse_exchange(const program& p, int i, const exchange& x) {
    if (x.posted != i || x.complete_before <= i || x.complete_before > p.steps.count)
      return subject_.refuse(fault::exchange_takes_no_step, p.rank, i, {}, x.to != no_rank ? x.to : x.from);
    if (x.lane < 0 || x.lane >= most_lanes) return subject_.refuse(fault::lane_does_not_exist, p.rank, i, {}, x.lane);
    if (x.tensor != every_tensor) return subject_.refuse(fault::tensor_alone, p.rank, i, {}, x.tensor - 1);
    const bool is_to = x.to == no_rank ? x.sent.count > 0 : !is_peer(p, x.to);
    return subject_.refuse(fault::peer_outside_world, p.rank, i, {}, is_to ? x.to : x.from);
  }

  constexpr bool receive(const program& p, slot_state& here, int i, const held_block& arriving, const exchange& x) {
    if (arriving.block.shard < 0 || arriving.block.shard >= p.world || arriving.block.slice < 0 ||
        arriving.block.slice >= p.slices || arriving.block.chunk >= p.chunks)
      return subject_.refuse(fault::block_outside_world, p.rank, i, arriving.block);
    kind& slots = here.kinds[static_cast<unsigned>(arriving.block.side)][static_cast<unsigned>(x.payload)];
    if (arriving.slot < 0 || arriving.slot >= slots.slots || slots.places[arriving.slot].free_from > i ||
        (x.payload == payload::partial && slots.places[arriving.slot].held))
      return refuse_slot(p, slots, i, arriving);
    x.payload == payload::operand ? slots.fill(arriving.slot, arriving.block, x.complete_before)
                                  : slots.reserve(arriving.slot, arriving.block, x.complete_before);
    return true;
  }

  /// For a block that cannot be put where the program says.
  constexpr bool refuse_slot(const program& p, const kind& slots, int i, const held_block& put) {
    if (put.slot < 0 || put.slot >= slots.slots) return subject_.refuse(fault::slot_missing, p.rank, i, put.block);
    return subject_.refuse(fault::slot_overwritten, p.rank, i, slots.places[put.slot].what);
  }

  constexpr bool read(const program& p, slot_state& here, int i, const block& what, int until) {
    if (what.shard < 0 || what.shard >= p.world || what.slice < 0 || what.slice >= p.slices || what.chunk >= p.chunks)
      return subject_.refuse(fault::block_outside_world, p.rank, i, what);
    if (what.shard == p.rank) return true;
    kind& operands = here.kinds[static_cast<unsigned>(what.side)][operand];
    const int slot = operands.find(what, i);
    if (slot == none) {
      const bool overwritten = operands.ever_held(what) && operands.find(what, never) == none;
      return overwritten ? subject_.refuse(fault::slot_overwritten, p.rank, i, what)
                         : message_search{subject_}.refuse_operand(p.rank, i, what);
    }
    if (operands.places[slot].free_from < until) operands.places[slot].free_from = until;
    return true;
  }

  constexpr bool send_partial(const program& p, slot_state& here, int i, const block& what, int until) {
    if (what.shard < 0 || what.shard >= p.world || what.slice < 0 || what.slice >= p.slices || what.chunk >= p.chunks)
      return subject_.refuse(fault::block_outside_world, p.rank, i, what);
    if (what.shard == p.rank) return subject_.refuse(fault::partial_leaves_home, p.rank, i, what);
    kind& partials = here.kinds[static_cast<unsigned>(what.side)][partial];
    const int slot = partials.find(what, i);
    if (slot == none) return subject_.refuse(fault::partial_not_held, p.rank, i, what);
    partials.forget(slot);
    partials.places[slot].free_from = until;
    return true;
  }

  constexpr bool compute(const program& p, slot_state& here, int i, entries<const held_block> blocks, side s, int slice,
                         bool adds_to_partials) {
    kind& partials = here.kinds[static_cast<unsigned>(s)][partial];
    for (auto [held, end] = blocks; held != end; ++held) {
      if (held->block.side != s || held->block.slice != slice)
        return subject_.refuse(fault::sides_confused, p.rank, i, held->block);
      if (!read(p, here, i, held->block, i + 1)) return false;
      if (!adds_to_partials || held->block.shard == p.rank || partials.find(held->block, i) != none) continue;
      if (held->slot < 0 || held->slot >= partials.slots || partials.places[held->slot].held ||
          partials.places[held->slot].free_from > i)
        return refuse_slot(p, partials, i, *held);
      partials.fill(held->slot, held->block, i);
    }
    return true;
  }

  proof_subject& subject_;
  int lanes_ = 1;
};

}  // namespace orrery::detail
