// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// The pass behind `placed`: rewrites a program as if ranks had other numbers. What rank r did, rank `to[r]` does, with
/// the shards of the ranks of the new numbers; `to` is a permutation of the ranks. Since a shard stays at home on the
/// rank of its number, this preserves the verdict and every count but those between nodes. Takes a program as a
/// topology writes it, before `finish`; linear in its size.
///
/// The remark that exchanges are a collective is dropped where its ranks are no longer evenly spaced.
[[nodiscard]] constexpr program relabel(program p, const list<int>& to) {
  const auto renamed = [&](int rank) { return rank >= 0 && rank < to.count ? to.items[rank] : rank; };
  p.rank = renamed(p.rank);
  for (exchange& x : p.exchanges) {
    x.to = renamed(x.to);
    x.from = renamed(x.from);
  }
  for (block& b : p.sent) b.shard = renamed(b.shard);
  for (list<held_block>* held : {&p.received, &p.queries, &p.keys}) {
    for (held_block& h : *held) h.block.shard = renamed(h.block.shard);
  }
  list<collective> kept;
  for (collective c : p.collectives) {
    const int first = renamed(c.first_rank);
    const int stride = c.ranks > 1 ? renamed(c.first_rank + c.rank_stride) - first : 1;
    bool even = stride > 0;
    for (int i = 0; i < c.ranks; ++i) even = even && renamed(c.first_rank + i * c.rank_stride) == first + i * stride;
    c.first_rank = first;
    c.rank_stride = stride;
    if (even) kept.push_back(c);
  }
  p.collectives = static_cast<list<collective>&&>(kept);
  return p;
}

/// The programs of all ranks, relabelled and in the order of their new numbers.
[[nodiscard]] constexpr list<program> relabel(const list<program>& all, const list<int>& to) {
  list<program> renamed(all.size());
  for (int rank = 0; rank < all.size(); ++rank) renamed[to[rank]] = relabel(all[rank], to);
  return renamed;
}

}  // namespace orrery::schedule
