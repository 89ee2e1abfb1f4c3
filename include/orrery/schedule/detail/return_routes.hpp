// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/schedule/block.hpp"
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
        chunks_{forward.items[0].chunks},
        sent_to_(period * world_),
        known_(period * slices_ * chunks_),
        places_(world_),
        of_{of} {
    ends_.reserve(2 * period * (forward.items[0].steps.count + 4));
    read(forward, of);
    list<int> by_arrival(steps_of_forward_ + 2);
    for (int item = 0; item < period * slices_ * chunks_; ++item) route(item, by_arrival);
  }

  /// One more than the last step in which a partial is sent.
  [[nodiscard]] constexpr int steps() const noexcept { return steps_; }

  /// Writes a rank's exchanges of one step: one message for all that goes to one rank in one lane.
  constexpr void write(builder& schedule, int rank, int step) const {
    if (step >= steps_) return;
    const ends& out = ends_.items[place_of(rank, step, sends)];
    const ends& in = ends_.items[place_of(rank, step, receives)];
    if (out.first == out.last && in.first == in.last && out.first != none && in.first != none) {  // as most are
      const parcel& one = parcels_.items[out.first];
      const parcel& other = parcels_.items[in.first];
      if (one.lane == other.lane && one.complete_before == other.complete_before) {
        schedule.begin_exchange(one.peer, other.peer, {lanes_[one.lane], one.complete_before - step}, payload::partial);
        schedule.send(one.what);
        schedule.receive(other.what);
        return;
      }
    }
    list<message> sent = messages_of(rank, step, sends);
    list<message> received = messages_of(rank, step, receives);
    for (const message& one : sent) {
      message* other = received.items;
      message* const end = other + received.count;
      while (other != end && (other->lane != one.lane || other->complete_before != one.complete_before)) ++other;
      schedule.begin_exchange(one.peer, other != end ? other->peer : no_rank,
                              {lanes_[one.lane], one.complete_before - step}, payload::partial);
      for (int i = one.first; i != none; i = with(one, parcels_.items[i].next)) schedule.send(parcels_.items[i].what);
      if (other == end) continue;
      for (int i = other->first; i != none; i = with(*other, parcels_.items[i].next))
        schedule.receive(parcels_.items[i].what);
      other->lane = none;  // is written
    }
    for (const message& one : received) {
      if (one.lane == none) continue;
      schedule.begin_exchange(no_rank, one.peer, {lanes_[one.lane], one.complete_before - step}, payload::partial);
      for (int i = one.first; i != none; i = with(one, parcels_.items[i].next))
        schedule.receive(parcels_.items[i].what);
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
  /// A partial that a rank of the period sends, or receives, in some step.
  struct parcel {
    int peer;
    int lane;  ///< index in lanes_
    int complete_before;
    block what;
    int next;  ///< of this rank, in this step and direction
  };
  /// Those that travel together.
  struct message {
    int peer;
    int lane;
    int complete_before;
    int first;
  };
  enum direction { sends, receives };

  /// The first parcel of the message from this one on.
  [[nodiscard]] constexpr int with(const message& one, int index) const {
    while (index != none && (parcels_.items[index].peer != one.peer || parcels_.items[index].lane != one.lane))
      index = parcels_.items[index].next;
    return index;
  }

  [[nodiscard]] constexpr list<message> messages_of(int rank, int step, direction which) const {
    list<message> all;
    for (int i = ends_.items[place_of(rank, step, which)].first; i != none; i = parcels_.items[i].next) {
      const parcel& one = parcels_.items[i];
      int at = 0;
      while (at < all.count && (all.items[at].peer != one.peer || all.items[at].lane != one.lane)) ++at;
      if (at == all.count) all.push_back({one.peer, one.lane, one.complete_before, i});
      if (one.complete_before < all.items[at].complete_before) all.items[at].complete_before = one.complete_before;
    }
    return all;
  }

  /// The ends of a chain of parcels.
  struct ends {
    int first;
    int last;
  };
  [[nodiscard]] constexpr int place_of(int rank, int step, direction which) const noexcept {
    return (step * period_ + rank) * 2 + which;
  }

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
    if (b.side != of || b.shard < 0 || b.shard >= world_ || b.slice < 0 || b.slice >= slices_ || b.chunk >= chunks_ ||
        what.step < 0 || what.step > steps_of_forward_)
      return;
    const int owner = b.shard % period_;
    const int distance = owner - b.shard;
    if (what.rank == b.shard) return;
    what.rank = wrapped(what.rank + distance);
    if (what.from != no_rank) what.from = wrapped(what.from + distance);
    known_.items[(owner * slices_ + slice_back(b.slice, -distance)) * chunks_ + b.chunk].push_back(what);
  }

  constexpr void route(int item, list<int>& by_arrival) {
    const int root = item / chunks_ / slices_;
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
    const int owner = item / chunks_ / slices_;
    const int slice = item / chunks_ % slices_;
    const auto chunk = static_cast<std::uint16_t>(item % chunks_);
    int flight = 1;
    if (here.next != owner) {
      const place& next = places_.items[here.next];
      flight = next.parent == rank ? next.flight : here.flight;
      if (flight > next.send - here.send) flight = next.send - here.send;
    }
    if (here.send >= steps_) steps_ = here.send + 1;
    const block what{of_, chunk, owner, slice};
    add_parcel(rank, here.next, sends, here.send, here.send + flight, what);
    add_parcel(here.next, rank, receives, here.send, here.send + flight, what);
  }

  constexpr void add_parcel(int rank, int peer, direction which, int step, int complete_before, const block& what) {
    const int first = rank % period_;
    const int distance = rank - first;
    while (ends_.count < 2 * period_ * (step + 1)) ends_.push_back({none, none});
    ends& chain = ends_.items[place_of(first, step, which)];
    (chain.first == none ? chain.first : parcels_.items[chain.last].next) = parcels_.count;
    chain.last = parcels_.count;
    parcels_.push_back({wrapped(peer - distance),
                        complete_before - step > 1 ? 1 : 0,
                        complete_before,
                        {of_, what.chunk, wrapped(what.shard - distance), slice_back(what.slice, distance)},
                        none});
  }

  int world_;
  int period_;
  int slices_;
  int chunks_;
  int steps_ = 0;
  int steps_of_forward_ = 0;
  int lanes_[2]{};          // for partials that are in flight for one step, and for more
  list<int> sent_to_;       // does a rank of the period send operands to a rank?
  list<list<fact>> known_;  // of each block, at [(owner * slices + slice) * chunks + chunk]
  list<place> places_;      // of the block that is being routed
  list<ends> ends_;         // of the chains of each step, rank of the period and direction
  list<parcel> parcels_;
  side of_;
};

}  // namespace orrery::schedule
