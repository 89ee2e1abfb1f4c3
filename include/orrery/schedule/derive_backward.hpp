// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/builder.hpp"

namespace orrery::schedule {

/// The backward of any forward: operands and query partials travel exactly as they do forward (with Q go dO,
/// log-sum-exp and delta; dQ comes home as the output did), and what a rank has gathered of dK and dV for another
/// rank's shard goes straight home after the last tile that adds to it.
///
/// Takes and returns the programs of all ranks, since the home of a shard must know who sends. Costs one more message
/// for each shard that a rank has met: as much volume as a ring of partials, but not between neighbours.
[[nodiscard]] constexpr list<program> derive_backward(const list<program>& forward) {
  struct return_send {
    int from, to, posted;
    block what;
  };
  int partial_lane = 0;  // one that the forward does not use
  for (const program& p : forward) {
    for (const exchange& posted : p.exchanges)
      partial_lane = posted.lane >= partial_lane ? posted.lane + 1 : partial_lane;
  }

  // 1. Who sends which partial home, and when: by the step in which both ends post the exchange.
  const int world = forward.size();
  int steps = 0;
  for (const program& p : forward) steps = p.steps.size() > steps ? p.steps.size() : steps;
  list<list<return_send>> mine(world);
  list<list<list<return_send>>> sends(world);
  list<list<list<return_send>>> receives(world);
  for (int rank = 0; rank < world; ++rank) {
    const program& p = forward[rank];
    list<int> sent_as(world * p.slices * p.chunks, -1);
    for (int i = 0; i < p.steps.size(); ++i) {
      const tile& t = p.steps[i].tile;
      if (t.empty()) continue;
      for (int k = t.keys.first; k < t.keys.end(); ++k) {
        const block& what = p.keys[k].block;
        if (what.shard == rank || what.slice < 0 || what.slice >= p.slices || what.chunk >= p.chunks)
          continue;  // what does not exist is `verify`'s to name
        int& index = sent_as[(what.shard * p.slices + what.slice) * p.chunks + what.chunk];
        if (index < 0) {
          index = mine[rank].size();
          mine[rank].push_back({rank, what.shard, 0, what});
        }
        mine[rank][index].posted = i + 1;
      }
    }
    sends[rank] = list<list<return_send>>(steps + 1);
    receives[rank] = list<list<return_send>>(steps + 1);
  }
  for (int rank = 0; rank < world; ++rank) {
    for (const return_send& one : mine[rank]) {
      sends[rank][one.posted].push_back(one);
      receives[one.to][one.posted].push_back(one);
    }
  }

  // 2. The forward again, with these exchanges added.
  list<program> backward(world);
  for (int rank = 0; rank < world; ++rank) {
    const program& p = forward[rank];
    builder schedule{rank, world, pass::circulate_keys, p.slices, p.chunks};
    for (int i = 0; i <= steps; ++i) {
      if (i > 0) schedule.next_step();
      if (i < p.steps.size()) schedule.repeat(p, i);
      for (const return_send& one : sends[rank][i]) {
        schedule.begin_exchange(one.to, no_rank, {partial_lane, 1}, payload::partial);
        schedule.send(one.what);
      }
      for (const return_send& one : receives[rank][i]) {
        schedule.begin_exchange(no_rank, one.from, {partial_lane, 1}, payload::partial);
        schedule.receive(one.what);
      }
    }
    backward[rank] = schedule;
  }
  return backward;
}

}  // namespace orrery::schedule
