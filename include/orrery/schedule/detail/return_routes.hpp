// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// The ways on which partials come home in a derived backward: those on which their operands came.
///
/// The first arrivals of an operand at each rank make a tree, whose root is the block's owner. Each rank sends its
/// partial once, when its last tile has added to it and all partials that are to be merged with it have arrived:
///
/// - to the rank from which the operand came;
/// - but along a ring, with the operands: where the last rank of a way u, v1, ..., vn sends operands to u, as it does
///   in a ring, v1 sends to v2, ... and vn to u. The partial is then complete one step after the last tile, and a rank
///   holds few of them; the other way round it would have to wait for vn, and hold one for every shard.
///
/// A partial stays in flight as long as the operand did on this link, if it is not needed earlier.
class return_routes {
 public:
  /// `forward` holds, for the first `period` ranks at least, the programs of ranks in lockstep, of which those of the
  /// others are rotations; `of` is the side of the blocks that return.
  constexpr return_routes(const list<program>& forward, int period, side of)
      : world_{forward.count},
        period_{period},
        slices_{forward.items[0].slices},
        sent_to_(period * world_),
        known_(period * slices_),
        places_(world_),
        messages_(period),
        of_{of} {
    read(forward, of);
    list<int> by_arrival(steps_of_forward_ + 2);
    for (int item = 0; item < period * slices_; ++item) route(item, by_arrival);
  }

  /// One more than the last step in which a partial is sent.
  [[nodiscard]] constexpr int steps() const noexcept { return steps_; }

  /// Writes a rank's exchanges of one step.
  constexpr void write(builder& schedule, int rank, int step) const {
    const list<of_step>& all = messages_.items[rank];
    if (step >= all.count) return;
    const list<message>& sent = all.items[step].sent;
    const list<message>& received = all.items[step].received;
    list<int> paired(received.count);
    for (const message& one : sent) {
      int other = 0;
      while (other < received.count && (paired.items[other] != 0 || received.items[other].lane != one.lane ||
                                        received.items[other].complete_before != one.complete_before))
        ++other;
      const bool both = other < received.count;
      schedule.begin_exchange(one.peer, both ? received.items[other].peer : no_rank,
                              {lanes_[one.lane], one.complete_before - step}, payload::partial);
      for (const block& b : one.blocks) schedule.send(b);
      if (!both) continue;
      for (const block& b : received.items[other].blocks) schedule.receive(b);
      paired.items[other] = 1;
    }
    for (int i = 0; i < received.count; ++i) {
      if (paired.items[i] != 0) continue;
      const message& one = received.items[i];
      schedule.begin_exchange(no_rank, one.peer, {lanes_[one.lane], one.complete_before - step}, payload::partial);
      for (const block& b : one.blocks) schedule.receive(b);
    }
  }

 private:
  static constexpr int none = -1;
  static constexpr int most_lanes = 16;

  /// What is known of a block at a rank: that it arrives there, or is in a tile.
  struct fact {
    int rank;
    int from;  ///< `no_rank`: a tile
    int step;  ///< of the tile; or before which the block has arrived
    int flight;
  };
  /// A rank of the tree of one block.
  struct place {
    int parent;
    int arrival;
    int flight;  ///< of the operand, to here
    int last;    ///< the last step with a tile; none: no tile
    int next;    ///< to whom the partial is sent
    int ready;   ///< the step in which all that is merged has arrived
    int awaits;  ///< how many others send to here
    int send;    ///< the step in which it is sent; none: there is nothing
    int met;
  };
  struct message {
    int peer;
    int lane;  ///< index in lanes_
    int complete_before;
    list<block> blocks;
  };
  struct of_step {
    list<message> sent;
    list<message> received;
  };

  [[nodiscard]] constexpr int wrapped(int rank) const noexcept {
    return rank < 0 ? rank + world_ : rank >= world_ ? rank - world_ : rank;
  }
  [[nodiscard]] constexpr int slice_back(int slice, int distance) const noexcept {
    return slices_ == 1 ? slice : ((slice - distance) % slices_ + slices_) % slices_;
  }

  constexpr void read(const list<program>& forward, side of) {
    bool taken[most_lanes]{};
    for (int rank = 0; rank < period_; ++rank) {
      const program& p = forward.items[rank];
      if (p.steps.count > steps_of_forward_) steps_of_forward_ = p.steps.count;
      for (const exchange& x : p.exchanges) {
        if (x.lane >= 0 && x.lane < most_lanes) taken[x.lane] = true;
        if (x.payload != payload::operand) continue;
        if (x.to >= 0 && x.to < world_ && x.sent.count > 0) sent_to_.items[rank * world_ + x.to] = 1;
        if (x.from < 0 || x.from >= world_) continue;
        for (auto [arriving, end] = p.received_by(x); arriving != end; ++arriving)
          add(arriving->block, of, {rank, x.from, x.complete_before, x.complete_before - x.posted});
      }
      for (int i = 0; i < p.steps.count; ++i) {
        const tile& t = p.steps.items[i].tile;
        if (t.empty()) continue;
        for (auto [held, end] = of == side::query ? p.queries_of(t) : p.keys_of(t); held != end; ++held)
          add(held->block, of, {rank, no_rank, i, 0});
      }
    }
    int lane = 0;
    for (int& own : lanes_) {
      while (lane < most_lanes && taken[lane]) ++lane;
      own = lane++;
    }
  }

  /// Notes a fact of a rank of the period for the rotation of the block that is owned by one.
  constexpr void add(const block& b, side of, fact what) {
    // What does not exist is `verify`'s to name.
    if (b.side != of || b.shard < 0 || b.shard >= world_ || b.slice < 0 || b.slice >= slices_ || what.step < 0 ||
        what.step > steps_of_forward_)
      return;
    const int owner = b.shard % period_;
    const int distance = owner - b.shard;
    if (what.rank == b.shard) return;
    what.rank = wrapped(what.rank + distance);
    if (what.from != no_rank) what.from = wrapped(what.from + distance);
    known_.items[owner * slices_ + slice_back(b.slice, -distance)].push_back(what);
  }

  constexpr void route(int item, list<int>& by_arrival) {
    const int root = item / slices_;
    const list<int> ranks = tree(known_.items[item], root, by_arrival);
    close_rings(ranks, root);
    time(ranks, root);
    for (const int rank : ranks) {
      const place& here = places_.items[rank];
      if (here.send != none) deliver(item, rank, here);
    }
    for (const int rank : ranks) places_.items[rank].met = 0;
  }

  /// The ranks where the block is, in the order in which it arrives, with their parents.
  constexpr list<int> tree(const list<fact>& facts, int root, list<int>& by_arrival) {
    list<int> met;
    for (const fact& one : facts) {
      place& here = places_.items[one.rank];
      if (here.met == 0) {
        here = {none, 0, 1, none, none, 0, 0, none, 1};
        met.push_back(one.rank);
      }
      if (one.from == no_rank) {
        if (one.step > here.last) here.last = one.step;
      } else if (here.parent == none || one.step < here.arrival) {
        here.parent = one.from;
        here.arrival = one.step;
        here.flight = one.flight < 1 ? 1 : one.flight;
      }
    }
    for (const int rank : met) {
      place& here = places_.items[rank];
      const place& parent = places_.items[here.parent == none ? rank : here.parent];
      // A block that arrives from where it has not been: `verify` names that. It is sent straight home.
      if (here.parent == none || (here.parent != root && (parent.met == 0 || parent.arrival >= here.arrival)))
        here.parent = root;
      here.next = here.parent;
      ++by_arrival.items[here.arrival + 1];
    }
    int before = 0;
    for (int& first : by_arrival) first = before += first;
    list<int> ordered(met.count);
    for (const int rank : met) ordered.items[by_arrival.items[places_.items[rank].arrival]++] = rank;
    for (int& first : by_arrival) first = 0;
    return ordered;
  }

  [[nodiscard]] constexpr bool sends_to(int rank, int peer) const {
    const int representative = rank % period_;
    return sent_to_.items[representative * world_ + wrapped(peer - (rank - representative))] != 0;
  }

  /// Finds the ways that end next to where they began, the longest first, and turns them round.
  constexpr void close_rings(const list<int>& ranks, int root) {
    list<int> turned(world_);
    for (int i = ranks.count - 1; i >= 0; --i) {
      const int last = ranks.items[i];
      int first = none;
      for (int rank = last; rank != root && turned.items[rank] == 0; rank = places_.items[rank].parent)
        if (rank != last && sends_to(last, places_.items[rank].parent)) first = rank;
      if (first == none) continue;
      places_.items[last].next = places_.items[first].parent;
      turned.items[last] = 1;
      for (int rank = last; rank != first;) {
        const int parent = places_.items[rank].parent;
        places_.items[parent].next = rank;
        turned.items[parent] = 1;
        rank = parent;
      }
    }
  }

  /// When each rank sends: not before its last tile, and what is merged with it has arrived.
  constexpr void time(const list<int>& ranks, int root) {
    for (const int rank : ranks) {
      const int next = places_.items[rank].next;
      if (next != root) ++places_.items[next].awaits;
    }
    list<int> free;
    free.reserve(ranks.count);
    for (const int rank : ranks) {
      if (places_.items[rank].awaits == 0) free.push_back(rank);
    }
    for (int i = 0; i < free.count; ++i) {
      place& here = places_.items[free.items[i]];
      const int added = here.last == none ? 0 : here.last + 1;
      if (here.last != none || here.ready > 0) here.send = added > here.ready ? added : here.ready;
      if (here.next == root) continue;
      place& next = places_.items[here.next];
      if (here.send + 1 > next.ready && here.send != none) next.ready = here.send + 1;
      if (--next.awaits == 0) free.push_back(here.next);
    }
  }

  /// Adds a rank's partial to the messages of the ranks of the period that do the same.
  constexpr void deliver(int item, int rank, const place& here) {
    const int owner = item / slices_;
    const int slice = item % slices_;
    int flight = 1;
    if (here.next != owner) {
      const place& next = places_.items[here.next];
      flight = next.parent == rank ? next.flight : here.flight;
      if (flight > next.send - here.send) flight = next.send - here.send;
    }
    if (here.send >= steps_) steps_ = here.send + 1;
    for (const bool sends : {true, false}) {
      const int self = sends ? rank : here.next;
      const int peer = sends ? here.next : rank;
      const int representative = self % period_;
      const int distance = self - representative;
      list<of_step>& all = messages_.items[representative];
      while (all.count <= here.send) all.push_back({});
      list<message>& messages = sends ? all.items[here.send].sent : all.items[here.send].received;
      const int to = wrapped(peer - distance);
      const int lane = flight > 1 ? 1 : 0;
      int at = 0;
      while (at < messages.count && (messages.items[at].peer != to || messages.items[at].lane != lane)) ++at;
      if (at == messages.count) messages.push_back({to, lane, here.send + flight, {}});
      message& one = messages.items[at];
      if (here.send + flight < one.complete_before) one.complete_before = here.send + flight;
      one.blocks.push_back({of_, wrapped(owner - distance), slice_back(slice, distance)});
    }
  }

  int world_;
  int period_;
  int slices_;
  int steps_ = 0;
  int steps_of_forward_ = 0;
  int lanes_[2]{};                // for partials that are in flight for one step, and for more
  list<int> sent_to_;             // does a rank of the period send operands to a rank?
  list<list<fact>> known_;        // of each block, at [owner * slices + slice]
  list<place> places_;            // of the block that is being routed
  list<list<of_step>> messages_;  // of each rank of the period, in each step
  side of_;
};

}  // namespace orrery::schedule
