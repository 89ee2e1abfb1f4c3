// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// Where each block that the programs of a world send, receive or compute with comes from, and where it goes: one graph
/// of all ranks. The programs need not be finished.
///
/// Exchanges, sent blocks, received blocks and the blocks of tiles are numbered over all ranks: those of rank r begin
/// at `first_exchange[r]`, and so on. Costs time and memory linear in the number of blocks, and two tables of world *
/// slices * chunks numbers.
class block_flow {
 public:
  static constexpr int none = -1;

  /// What a rank has gathered of a partial, from the first addition until it is sent.
  struct sum {
    int rank;
    int sent;  ///< the sent block that takes it away, or none
  };

  const list<program>& programs;
  list<int> first_exchange, first_sent, first_received, first_query, first_key;
  list<int> exchange_of_sent, exchange_of_received;
  list<int> received_of_sent;  ///< the other end of each message's block
  list<int> sent_of_received;
  list<int> operand_of_sent;  ///< of a sent operand: the received block that it is; none: the rank's own
  list<int> sum_of_sent;      ///< of a sent partial: what it is
  list<int> sum_of_received;  ///< of a received partial: to what it is added; none: the rank's own result
  list<int> operand_of_query,
      operand_of_key;  ///< of a tile's block: the received block that it is; none: the rank's own
  list<int> sum_of_query,
      sum_of_key;  ///< of a tile's block: what the tile adds to; none: the rank's own, or no partial
  list<sum> sums;
  int steps = 0;  ///< of the longest program
  int lanes = 1;

  constexpr explicit block_flow(const list<program>& of) : programs{of} {
    consistent_ = number_all() && match_all();
    if (consistent_) follow_all();
  }

  /// True if every message has its other end and every name exists. If not, the rest is not filled in: `verify`
  /// finds out what is wrong.
  [[nodiscard]] constexpr bool is_consistent() const noexcept { return consistent_; }

  [[nodiscard]] constexpr int rank_of_sent(int s) const noexcept {
    return rank_of_exchange_.items[exchange_of_sent[s]];
  }
  [[nodiscard]] constexpr int rank_of_received(int n) const noexcept {
    return rank_of_exchange_.items[exchange_of_received[n]];
  }
  [[nodiscard]] constexpr const exchange& exchange_at(int e) const {
    const int rank = rank_of_exchange_.items[e];
    return programs.items[rank].exchanges.items[e - first_exchange.items[rank]];
  }

 private:
  static constexpr int most_lanes = 16;

  constexpr bool number_all() {
    const int world = programs.count;
    for (list<int>* first : {&first_exchange, &first_sent, &first_received, &first_query, &first_key})
      *first = list<int>(world + 1);
    for (int rank = 0; rank < world; ++rank) {
      const program& p = programs.items[rank];
      if (!has_good_names(p, rank)) return false;
      first_exchange.items[rank + 1] = first_exchange.items[rank] + p.exchanges.count;
      first_sent.items[rank + 1] = first_sent.items[rank] + p.sent.count;
      first_received.items[rank + 1] = first_received.items[rank] + p.received.count;
      first_query.items[rank + 1] = first_query.items[rank] + p.queries.count;
      first_key.items[rank + 1] = first_key.items[rank] + p.keys.count;
      if (p.steps.count > steps) steps = p.steps.count;
    }
    rank_of_exchange_ = list<int>(first_exchange.items[world]);
    exchange_of_sent = list<int>(first_sent.items[world]);
    exchange_of_received = list<int>(first_received.items[world]);
    for (int rank = 0; rank < world; ++rank) {
      const program& p = programs.items[rank];
      for (int e = 0, number = first_exchange.items[rank]; e < p.exchanges.count; ++e, ++number) {
        const exchange& x = p.exchanges.items[e];
        rank_of_exchange_.items[number] = rank;
        for (int s = x.sent.first; s < x.sent.end(); ++s) exchange_of_sent.items[first_sent.items[rank] + s] = number;
        for (int n = x.received.first; n < x.received.end(); ++n)
          exchange_of_received.items[first_received.items[rank] + n] = number;
      }
    }
    return true;
  }

  [[nodiscard]] constexpr bool exists(const block& b) const {
    const program& p = programs.items[0];
    return b.shard >= 0 && b.shard < programs.count && b.slice >= 0 && b.slice < p.slices && b.chunk < p.chunks;
  }

  constexpr bool has_good_names(const program& p, int rank) {
    if (p.rank != rank || p.world != programs.count || p.slices != programs.items[0].slices ||
        p.chunks != programs.items[0].chunks || p.chunks < 1 || p.chunks > most_chunks ||
        p.pass != programs.items[0].pass)
      return false;
    const auto is_peer = [&](int peer) { return peer >= 0 && peer < p.world && peer != rank; };
    for (int i = 0, posted = 0; i < p.steps.count; ++i) {
      const step& now = p.steps.items[i];
      if (now.exchanges.first != posted) return false;
      posted += now.exchanges.count;
      for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) {
        const exchange& x = p.exchanges.items[e];
        if (x.posted != i || x.complete_before <= i || x.complete_before > p.steps.count || x.lane < 0 ||
            x.lane >= most_lanes || x.tensor != every_tensor || (x.sent.count > 0 && !is_peer(x.to)) ||
            (x.received.count > 0 && !is_peer(x.from)))
          return false;
        if (x.lane >= lanes) lanes = x.lane + 1;
      }
      if (i + 1 == p.steps.count && posted != p.exchanges.count) return false;
      const tile& t = now.tile;
      if (t.empty()) continue;
      const int slice = p.queries.items[t.queries.first].block.slice;
      for (int q = t.queries.first; q < t.queries.end(); ++q)
        if (p.queries.items[q].block.side != side::query || p.queries.items[q].block.slice != slice) return false;
      for (int k = t.keys.first; k < t.keys.end(); ++k)
        if (p.keys.items[k].block.side != side::key || p.keys.items[k].block.slice != slice) return false;
    }
    if (p.steps.count == 0 && p.exchanges.count > 0) return false;
    for (const block& b : p.sent)
      if (!exists(b)) return false;
    for (const list<held_block>* held : {&p.received, &p.queries, &p.keys}) {
      for (const held_block& h : *held)
        if (!exists(h.block)) return false;
    }
    return true;
  }

  /// Joins the k-th message from a rank to a rank in a lane with the k-th that the other awaits.
  constexpr bool match_all() {
    const int world = programs.count;
    const int exchanges = rank_of_exchange_.count;
    // The sending exchanges by receiver, in the order of senders and their posting.
    list<int> first(world + 1);
    for (const program& p : programs) {
      for (const exchange& x : p.exchanges)
        if (x.sent.count > 0) ++first.items[x.to];
    }
    for (int to = 0, before = 0; to <= world; ++to) before = first.items[to] += before;
    list<int> sending(first.items[world]);
    for (int e = exchanges - 1; e >= 0; --e) {
      const exchange& x = exchange_at(e);
      if (x.sent.count > 0) sending.items[--first.items[x.to]] = e;
    }
    received_of_sent = list<int>(exchange_of_sent.count);
    sent_of_received = list<int>(exchange_of_received.count, none);
    list<int> next(exchanges);         // the next message of the same sender and lane
    list<int> waiting(world * lanes);  // 1 + the first message of each sender and lane that is not matched yet
    for (int to = 0; to < world; ++to) {
      for (int m = first.items[to + 1] - 1; m >= first.items[to]; --m) {
        const int e = sending.items[m];
        int& head = waiting.items[rank_of_exchange_.items[e] * lanes + exchange_at(e).lane];
        next.items[e] = head;
        head = e + 1;
      }
      const program& p = programs.items[to];
      int matched = 0;
      for (int e = 0; e < p.exchanges.count; ++e) {
        const exchange& x = p.exchanges.items[e];
        if (x.received.count == 0) continue;
        int& head = waiting.items[x.from * lanes + x.lane];
        if (head == 0) return false;
        const int message = head - 1;
        head = next.items[message];
        ++matched;
        const exchange& y = exchange_at(message);
        const program& sender = programs.items[x.from];
        if (x.payload != y.payload || x.received.count != y.sent.count) return false;
        for (int b = 0; b < x.received.count; ++b) {
          if (!(p.received.items[x.received.first + b].block == sender.sent.items[y.sent.first + b])) return false;
          const int n = first_received.items[to] + x.received.first + b;
          const int s = first_sent.items[x.from] + y.sent.first + b;
          received_of_sent.items[s] = n;
          sent_of_received.items[n] = s;
        }
      }
      if (matched != first.items[to + 1] - first.items[to]) return false;
    }
    return true;
  }

  constexpr void follow_all() {
    operand_of_sent = sum_of_sent = list<int>(exchange_of_sent.count, none);
    sum_of_received = older_ = list<int>(exchange_of_received.count, none);
    operand_of_query = sum_of_query = list<int>(first_query.back(), none);
    operand_of_key = sum_of_key = list<int>(first_key.back(), none);
    const int names = 2 * programs.count * programs.items[0].slices * programs.items[0].chunks;
    newest_ = open_ = list<int>(names, none);
    for (int rank = 0; rank < programs.count; ++rank) {
      follow(rank);
      const program& p = programs.items[rank];
      for (const list<held_block>* held : {&p.received, &p.queries, &p.keys})
        for (const held_block& h : *held) newest_.items[name(h.block)] = open_.items[name(h.block)] = none;
      for (const block& b : p.sent) newest_.items[name(b)] = open_.items[name(b)] = none;
    }
  }

  /// The place of a block in tables.
  [[nodiscard]] constexpr int name(const block& b) const {
    const int world = programs.count;
    const program& p = programs.items[0];
    return ((static_cast<int>(b.side) * world + b.shard) * p.slices + b.slice) * p.chunks + b.chunk;
  }

  /// The received operand that is read as `b` in `step`, or none.
  [[nodiscard]] constexpr int operand(const block& b, int step) const {
    int n = newest_.items[name(b)];
    while (n != none && exchange_at(exchange_of_received.items[n]).complete_before > step) n = older_.items[n];
    return n;
  }
  /// The sum that is under way for `b` on the rank, begun now if there is none.
  constexpr int open_sum(int rank, const block& b) {
    int& open = open_.items[name(b)];
    if (open == none) {
      open = sums.count;
      *sums.extend(1) = {rank, none};
    }
    return open;
  }

  /// Goes through a rank's steps.
  constexpr void follow(int rank) {
    const program& p = programs.items[rank];
    const int first_n = first_received.items[rank];
    // The exchanges by the step before which they complete.
    list<int> first(p.steps.count + 2);
    for (const exchange& x : p.exchanges) ++first.items[x.complete_before];
    for (int i = 0, before = 0; i < first.count; ++i) before = first.items[i] += before;
    list<int> completed(p.exchanges.count);
    for (int e = p.exchanges.count - 1; e >= 0; --e)
      completed.items[--first.items[p.exchanges.items[e].complete_before]] = e;

    for (int i = 0; i <= p.steps.count; ++i) {
      for (int c = first.items[i]; c < first.items[i + 1]; ++c) {
        const exchange& x = p.exchanges.items[completed.items[c]];
        if (x.payload == payload::operand) continue;
        for (int n = x.received.first; n < x.received.end(); ++n) {
          const block& b = p.received.items[n].block;
          if (b.shard != rank) sum_of_received.items[first_n + n] = open_sum(rank, b);
        }
      }
      if (i == p.steps.count) break;
      const step& now = p.steps.items[i];
      for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) post(rank, i, p.exchanges.items[e]);
      if (now.tile.empty()) continue;
      compute(rank, i, now.tile.queries, p.queries, first_query.items[rank], operand_of_query, sum_of_query);
      compute(rank, i, now.tile.keys, p.keys, first_key.items[rank], operand_of_key, sum_of_key);
    }
  }

  constexpr void post(int rank, int i, const exchange& x) {
    const program& p = programs.items[rank];
    for (int s = x.sent.first; s < x.sent.end(); ++s) {
      const block& b = p.sent.items[s];
      const int number = first_sent.items[rank] + s;
      if (x.payload == payload::operand) {
        if (b.shard != rank) operand_of_sent.items[number] = operand(b, i);
      } else if (int& open = open_.items[name(b)]; open != none) {
        sum_of_sent.items[number] = open;
        sums.items[open].sent = number;
        open = none;
      }
    }
    if (x.payload == payload::partial) return;
    for (int n = x.received.first; n < x.received.end(); ++n) {
      int& newest = newest_.items[name(p.received.items[n].block)];
      older_.items[first_received.items[rank] + n] = newest;
      newest = first_received.items[rank] + n;
    }
  }

  constexpr void compute(int rank, int i, const range& which, const list<held_block>& blocks, int first_number,
                         list<int>& operand_of, list<int>& sum_of) {
    for (int h = which.first; h < which.end(); ++h) {
      const block& b = blocks.items[h].block;
      if (b.shard == rank) continue;
      operand_of.items[first_number + h] = operand(b, i);
      if (has_partials(programs.items[rank].pass, b.side)) sum_of.items[first_number + h] = open_sum(rank, b);
    }
  }

  bool consistent_ = false;
  list<int> rank_of_exchange_;
  list<int> newest_, open_;  // of the rank at hand: the operand that was received last, and the sum under way, by name
  list<int> older_;          // of a received operand: the one before it of the same name
};

}  // namespace orrery::schedule
