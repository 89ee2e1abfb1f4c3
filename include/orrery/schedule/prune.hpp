// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/detail/block_flow.hpp"
#include "orrery/schedule/detail/whole_collectives.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/schedule/relation.hpp"

namespace orrery::schedule {

/// Says whether `prune` lets blocks that only pass through a rank go past it.
enum class shortcuts : bool { no, yes };

/// The pass behind `prune`.
template <pair_relation Visible>
class pruning {
 public:
  constexpr pruning(const list<program>& unpruned, const Visible& visible, shortcuts how)
      : flow_{unpruned}, visible_{visible}, how_{how} {}

  constexpr list<program> run() {
    if (!flow_.is_consistent()) return flow_.programs;
    sent_ = list<bool>(flow_.exchange_of_sent.count);
    received_ = list<bool>(flow_.exchange_of_received.count);
    read_ = list<bool>(flow_.exchange_of_received.count);
    sums_ = list<sum>(flow_.sums.count);
    find_tiles();
    find_transfers();
    // Two lanes of their own: the order of messages in the others stays what it is.
    if (how_ == shortcuts::yes && flow_.lanes + 2 <= most_lanes) {
      find_operand_shortcuts();
      find_partial_shortcuts();
      sort_shortcuts();
    }
    find_steps();
    const whole_collectives whole{flow_, sent_, received_};
    list<program> pruned(flow_.programs.count);
    for (int rank = 0; rank < pruned.count; ++rank) pruned.items[rank] = rewritten(rank, whole);
    return pruned;
  }

 private:
  static constexpr int none = block_flow::none;
  static constexpr int most_lanes = 16;

  struct sum {
    bool needed;   ///< a needed tile or message adds to it
    bool by_tile;  ///< a needed tile does
    int arrivals;  ///< needed messages that do
  };

  /// A message past the ranks between.
  struct shortcut {
    int from;
    int to;
    int posted;
    int complete_before;
    int sent;  ///< the block
    orrery::schedule::payload payload;
  };

  // 1. What tiles need.

  /// Keeps the rows and columns of tiles that have a visible pair, and notes what they read and add to.
  constexpr void find_tiles() {
    query_ = list<bool>(flow_.first_query.back());
    key_ = list<bool>(flow_.first_key.back());
    for (int rank = 0; rank < flow_.programs.count; ++rank) {
      const program& p = flow_.programs.items[rank];
      const int first_q = flow_.first_query.items[rank];
      const int first_k = flow_.first_key.items[rank];
      for (const step& now : p.steps) {
        if (now.tile.empty()) continue;
        for (int q = now.tile.queries.first; q < now.tile.queries.end(); ++q) {
          for (int k = now.tile.keys.first; k < now.tile.keys.end(); ++k) {
            const block& query = p.queries.items[q].block;
            const block& key = p.keys.items[k].block;
            if (visible_(query.shard * p.chunks + query.chunk, key.shard * p.chunks + key.chunk))
              query_.items[first_q + q] = key_.items[first_k + k] = true;
          }
        }
        for (int q = now.tile.queries.first; q < now.tile.queries.end(); ++q)
          if (query_.items[first_q + q])
            use(flow_.operand_of_query.items[first_q + q], flow_.sum_of_query.items[first_q + q]);
        for (int k = now.tile.keys.first; k < now.tile.keys.end(); ++k)
          if (key_.items[first_k + k])
            use(flow_.operand_of_key.items[first_k + k], flow_.sum_of_key.items[first_k + k]);
      }
    }
  }

  constexpr void use(int operand, int to) {
    if (operand != none) {
      read_.items[operand] = true;
      need_operand(operand);
    }
    if (to != none) {
      sums_.items[to].by_tile = true;
      need_sum(to);
    }
  }

  // 2. What messages need: operands from tiles back to their owners, partials from tiles on to theirs.

  constexpr void need_operand(int n) {
    if (received_.items[n]) return;
    received_.items[n] = true;
    operands_.push_back(n);
  }
  constexpr void need_sum(int o) {
    if (sums_.items[o].needed) return;
    sums_.items[o].needed = true;
    partials_.push_back(o);
  }

  constexpr void find_transfers() {
    while (!operands_.empty()) {
      const int s = flow_.sent_of_received.items[operands_.pop_back()];
      sent_.items[s] = true;
      if (const int n = flow_.operand_of_sent.items[s]; n != none) need_operand(n);
    }
    while (!partials_.empty()) {
      const int s = flow_.sums.items[partials_.pop_back()].sent;
      if (s == none) continue;
      const int n = flow_.received_of_sent.items[s];
      sent_.items[s] = received_.items[n] = true;
      const int o = flow_.sum_of_received.items[n];
      if (o == none) continue;
      ++sums_.items[o].arrivals;
      need_sum(o);
    }
  }

  // 3. Shortcuts.

  [[nodiscard]] constexpr bool is_operand(int n) const {
    return flow_.exchange_at(flow_.exchange_of_received.items[n]).payload == payload::operand;
  }

  /// An operand that a rank does not read and sends on once goes past the rank: from the last rank before that reads
  /// it, or sends it on more than once, or owns it.
  constexpr void find_operand_shortcuts() {
    list<int> sent_on(received_.count);
    for (int s = 0; s < sent_.count; ++s) {
      if (sent_.items[s] && flow_.operand_of_sent.items[s] != none) ++sent_on.items[flow_.operand_of_sent.items[s]];
    }
    const auto passes = [&](int n) { return n != none && !read_.items[n] && sent_on.items[n] == 1; };
    for (int n = 0; n < received_.count; ++n) {
      if (!received_.items[n] || passes(n) || !is_operand(n)) continue;
      const int last = flow_.sent_of_received.items[n];
      int s = last;
      while (passes(flow_.operand_of_sent.items[s])) s = flow_.sent_of_received.items[flow_.operand_of_sent.items[s]];
      const int from = flow_.rank_of_sent(s);
      const int to = flow_.rank_of_received(n);
      if (s == last || from == to) continue;
      for (int hop = last;; hop = flow_.sent_of_received.items[flow_.operand_of_sent.items[hop]]) {
        drop(hop);
        if (hop == s) break;
      }
      const exchange& x = flow_.exchange_at(flow_.exchange_of_received.items[n]);
      *shortcuts_.extend(1) = {from, to, x.posted, x.complete_before, last, payload::operand};
    }
  }

  /// A partial to which a rank adds nothing goes past the rank: from the last rank that adds to it.
  constexpr void find_partial_shortcuts() {
    const auto passes = [&](int o) {
      return o != none && !sums_.items[o].by_tile && sums_.items[o].arrivals == 1 && flow_.sums.items[o].sent != none;
    };
    for (int first = 0; first < sent_.count; ++first) {
      const int o = flow_.sum_of_sent.items[first];
      if (!sent_.items[first] || o == none || passes(o)) continue;
      const auto onward = [&](int s) { return flow_.sum_of_received.items[flow_.received_of_sent.items[s]]; };
      int s = first;
      while (passes(onward(s))) s = flow_.sums.items[onward(s)].sent;
      const int from = flow_.rank_of_sent(first);
      const int to = flow_.rank_of_received(flow_.received_of_sent.items[s]);
      if (s == first || from == to) continue;
      for (int hop = first;; hop = flow_.sums.items[onward(hop)].sent) {
        drop(hop);
        if (hop == s) break;
      }
      const exchange& x = flow_.exchange_at(flow_.exchange_of_sent.items[first]);
      *shortcuts_.extend(1) = {from, to, x.posted, x.complete_before, first, payload::partial};
    }
  }

  /// Both ends of a message's block.
  constexpr void drop(int s) { sent_.items[s] = received_.items[flow_.received_of_sent.items[s]] = false; }

  /// By the step that posts them, then by their ends: both ends then post them in one order.
  constexpr void sort_shortcuts() {
    sort_shortcuts_by(flow_.programs.count, [](const shortcut& s) { return s.to; });
    sort_shortcuts_by(flow_.programs.count, [](const shortcut& s) { return s.from; });
    sort_shortcuts_by(flow_.steps, [](const shortcut& s) { return s.posted; });
    const int world = flow_.programs.count;
    for (const bool out : {true, false}) {
      list<int>& first = out ? first_out_ : first_in_;
      list<int>& of_rank = out ? out_ : in_;
      first = list<int>(world + 1);
      of_rank = list<int>(shortcuts_.count);
      for (const shortcut& one : shortcuts_) ++first.items[out ? one.from : one.to];
      for (int rank = 0, before = 0; rank <= world; ++rank) before = first.items[rank] += before;
      for (int c = shortcuts_.count - 1; c >= 0; --c)
        of_rank.items[--first.items[out ? shortcuts_.items[c].from : shortcuts_.items[c].to]] = c;
    }
  }
  /// A stable counting sort.
  template <class Key>
  constexpr void sort_shortcuts_by(int keys, const Key& key) {
    list<int> first(keys + 1);
    for (const shortcut& one : shortcuts_) ++first.items[key(one) + 1];
    for (int k = 0; k < keys; ++k) first.items[k + 1] += first.items[k];
    list<shortcut> sorted(shortcuts_.count);
    for (const shortcut& one : shortcuts_) sorted.items[first.items[key(one)]++] = one;
    shortcuts_ = static_cast<list<shortcut>&&>(sorted);
  }

  // 4. Steps in which no rank does anything are dropped.

  constexpr void find_steps() {
    busy_ = list<bool>(flow_.steps + 1);
    for (int rank = 0; rank < flow_.programs.count; ++rank) {
      const program& p = flow_.programs.items[rank];
      for (int i = 0; i < p.steps.count; ++i) {
        const tile& t = p.steps.items[i].tile;
        for (int q = t.queries.first; q < t.queries.end() && !busy_.items[i]; ++q)
          if (query_.items[flow_.first_query.items[rank] + q]) busy_.items[i] = true;
      }
    }
    for (int s = 0; s < sent_.count; ++s) {
      if (!sent_.items[s]) continue;
      busy_.items[flow_.exchange_at(flow_.exchange_of_sent.items[s]).posted] = true;
      busy_.items[flow_.exchange_at(flow_.exchange_of_received.items[flow_.received_of_sent.items[s]]).posted] = true;
    }
    for (const shortcut& one : shortcuts_) busy_.items[one.posted] = true;
    new_step_ = list<int>(flow_.steps + 1);
    for (int i = 0, now = 0; i <= flow_.steps; ++i) {
      new_step_.items[i] = now;
      if (busy_.items[i]) ++now;
    }
  }

  // 5. What is left.

  constexpr program rewritten(int rank, const whole_collectives& whole) const {
    const program& p = flow_.programs.items[rank];
    builder schedule{rank, p.world, p.pass, p.slices, p.chunks};
    list<int> renumbered(p.exchanges.count + 1);  // of each exchange: those that are left before it
    int out = first_out_.count > 0 ? first_out_.items[rank] : 0;
    int in = first_in_.count > 0 ? first_in_.items[rank] : 0;
    for (int i = 0; i < flow_.steps; ++i) {
      if (!busy_.items[i]) continue;
      if (i < p.steps.count) {
        const step& now = p.steps.items[i];
        for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) {
          renumbered.items[e] = schedule.exchanges_so_far();
          rewrite(schedule, rank, i, p.exchanges.items[e]);
          renumbered.items[e + 1] = schedule.exchanges_so_far();
        }
      }
      add_shortcuts(schedule, rank, i, out, in);
      if (i < p.steps.count) {
        const tile& t = p.steps.items[i].tile;
        for (int q = t.queries.first; q < t.queries.end(); ++q)
          if (query_.items[flow_.first_query.items[rank] + q]) schedule.add_to_tile(p.queries.items[q].block);
        for (int k = t.keys.first; k < t.keys.end(); ++k)
          if (key_.items[flow_.first_key.items[rank] + k]) schedule.add_to_tile(p.keys.items[k].block);
      }
      schedule.next_step();
    }
    for (int c = 0; c < p.collectives.count; ++c) {
      if (!whole.contains(rank, c)) continue;
      const collective& one = p.collectives.items[c];
      const int first = renumbered.items[one.exchanges.first];
      schedule.mark_collective(one.kind, {one.first_rank, one.ranks, one.rank_stride},
                               range{first, renumbered.items[one.exchanges.end() - 1] + 1 - first});
    }
    return schedule;
  }

  constexpr void rewrite(builder& schedule, int rank, int i, const exchange& x) const {
    const program& p = flow_.programs.items[rank];
    const bool* const sent = sent_.items + flow_.first_sent.items[rank];
    const bool* const received = received_.items + flow_.first_received.items[rank];
    bool sends = false;
    bool receives = false;
    for (int s = x.sent.first; s < x.sent.end(); ++s) sends = sends || sent[s];
    for (int n = x.received.first; n < x.received.end(); ++n) receives = receives || received[n];
    if (!sends && !receives) return;
    schedule.begin_exchange(sends ? x.to : no_rank, receives ? x.from : no_rank,
                            {x.lane, new_step_.items[x.complete_before] - new_step_.items[i]}, x.payload);
    for (int s = x.sent.first; s < x.sent.end(); ++s)
      if (sent[s]) schedule.send(p.sent.items[s]);
    for (int n = x.received.first; n < x.received.end(); ++n)
      if (received[n]) schedule.receive(p.received.items[n].block);
  }

  /// Those of this rank and step, `out` and `in` being the next ones. Blocks between the same ranks go together.
  constexpr void add_shortcuts(builder& schedule, int rank, int i, int& out, int& in) const {
    for (const bool sends : {true, false}) {
      const list<int>& of_rank = sends ? out_ : in_;
      int& next = sends ? out : in;
      if (of_rank.count == 0) continue;
      const int end = (sends ? first_out_ : first_in_).items[rank + 1];
      for (int before = none; next < end && shortcuts_.items[of_rank.items[next]].posted == i; ++next) {
        const int index = of_rank.items[next];
        const shortcut& one = shortcuts_.items[index];
        if (before == none || index != before + 1 || !go_together(shortcuts_.items[before], one)) {
          const int lane = flow_.lanes + (one.payload == payload::partial ? 1 : 0);
          schedule.begin_exchange(sends ? one.to : no_rank, sends ? no_rank : one.from,
                                  {lane, new_step_.items[one.complete_before] - new_step_.items[i]}, one.payload);
        }
        before = index;
        const block& b = flow_.programs.items[flow_.rank_of_sent(one.sent)]
                             .sent.items[one.sent - flow_.first_sent.items[flow_.rank_of_sent(one.sent)]];
        sends ? schedule.send(b) : schedule.receive(b);
      }
    }
  }
  [[nodiscard]] static constexpr bool go_together(const shortcut& a, const shortcut& b) {
    return a.from == b.from && a.to == b.to && a.complete_before == b.complete_before && a.payload == b.payload;
  }

  block_flow flow_;
  const Visible& visible_;
  shortcuts how_;
  list<bool> query_, key_;      // blocks of tiles that stay
  list<bool> sent_, received_;  // blocks of messages that stay
  list<bool> read_;             // received blocks that a tile reads
  list<sum> sums_;
  list<int> operands_, partials_;  // received operands and sums whose messages are not found yet
  list<shortcut> shortcuts_;
  list<int> first_out_, out_, first_in_, in_;  // the shortcuts of each rank, by their ends
  list<bool> busy_;
  list<int> new_step_;
};

/// Leaves out what a relation does not ask for. Takes the programs of all ranks as a topology writes them, for every
/// pair, and returns those that compute the visible pairs alone and move what these need:
///
/// 1. Tiles lose query blocks that see none of their keys, and key blocks that none of their queries sees.
/// 2. Messages lose operands that no tile reads any more, and partials to which no tile adds.
/// 3. A block that only passes through a rank goes past it, in two lanes of its own: an operand that the rank does not
///    read and sends on once, a partial to which it adds nothing.
/// 4. Steps in which no rank has anything left to do are dropped.
/// 5. Exchanges stay marked as a collective if no rank of its group has lost any of its blocks.
///
/// No rank sends more blocks than before, nor does any group of ranks send more to the others; there may be more, and
/// smaller, messages. What is pruned once is not changed by a second time. The programs are not finished.
///
///     list<program> pruned = prune(detail::unallocated_programs(ring{}, 16), below_diagonal{});  // half of the
///     traffic
///
/// The result is not trusted: `verify(programs, visible)` proves it, as it does others (see `specialize`). Where
/// messages do not match, or a name does not exist, programs are returned as they came, for `verify` to say so.
///
/// Time and memory: linear in the number of blocks that the programs name, which is world^2 for a ring.
template <pair_relation Visible>
[[nodiscard]] constexpr list<program> prune(const list<program>& unpruned, const Visible& visible,
                                            shortcuts how = shortcuts::yes) {
  if (unpruned.empty()) return {};
  return pruning<Visible>{unpruned, visible, how}.run();
}

}  // namespace orrery::schedule
