// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// A group of ranks first, first + stride, ... that takes part in a collective.
struct rank_group {
  int first = 0;
  int count = 1;
  int stride = 1;

  [[nodiscard]] constexpr int member(int index) const noexcept { return first + index * stride; }
  [[nodiscard]] constexpr int index_of(int rank) const noexcept { return (rank - first) / stride; }
};

/// How an exchange travels: its lane, and for how many steps it may be in flight (1: usable in the next step).
struct in_flight {
  int lane = 0;
  int steps = 1;
};

/// All members of a group hold partials for each other.
struct every_two_ranks {
  [[nodiscard]] constexpr bool operator()(int, int) const noexcept { return true; }
};

/// Leaves the ranks and blocks of a program that is written again as they are (see `builder::repeat`).
struct same_place {
  [[nodiscard]] static constexpr int rank(int r) noexcept { return r; }
  [[nodiscard]] static constexpr blocks blocks_of(const block& b) noexcept { return b; }
};

/// Writes one rank's program, step by step. Shards are taken modulo the world.
///
///     orrery::builder schedule{rank, world};
///     for (int hop = 0; hop < world; ++hop) {
///       if (hop + 1 < world) schedule.shift(orrery::key(rank - hop), +1);
///       schedule.interact(orrery::query(rank), orrery::key(rank - hop));
///       schedule.next_step();
///     }
///     return schedule;
///
/// Exchanges belong to the step in which they are written and are in flight while its tile is computed. A builder turns
/// into a `program` once.
///
/// A topology leaves `chunks` at 1. With more, it is one chunk of a shard that each `blocks` names (see
/// `blocks::in_chunk`); `all_gather` and `reduce_scatter` then speak of chunk 0 only.
class builder {
 public:
  constexpr builder(int rank, int world, pass p = pass::forward, int slices = 1, int chunks = 1)
      : rank_{rank}, world_{world} {
    program_.rank = rank;
    program_.world = world;
    program_.pass = p;
    program_.slices = slices;
    program_.chunks = chunks;
  }

  /// Every rank sends `sent` to the rank `distance` further on and receives from the rank `distance` back what that one
  /// sends: the same blocks, `distance` shards back. The hop of every ring.
  constexpr void shift(const blocks& sent, int distance, in_flight flight = {}, payload what = payload::operand) {
    begin_exchange(wrapped(rank_ + distance), wrapped(rank_ - distance), flight, what);
    send(sent);
    receive({sent.side, sent.first - distance, sent.count, sent.stride, sent.slice, sent.slices, sent.chunk});
  }

  /// Begins an exchange of this step with rank `to`, which gets what the following `send` calls name, and rank `from`,
  /// from which the blocks of the following `receive` calls come; either may be `no_rank`. An exchange with oneself is
  /// no exchange, and what is then named is ignored.
  constexpr void begin_exchange(int to, int from, in_flight flight = {}, payload what = payload::operand) {
    sending_ = to != no_rank && to != rank_;
    receiving_ = from != no_rank && from != rank_;
    if (!sending_ && !receiving_) return;
    *program_.exchanges.extend(1) = {sending_ ? to : no_rank,
                                     receiving_ ? from : no_rank,
                                     flight.lane,
                                     what,
                                     program_.steps.count,
                                     program_.steps.count + (flight.steps < 0 ? 0 : flight.steps),
                                     {program_.sent.count, 0},
                                     {program_.received.count, 0},
                                     every_tensor};
  }
  constexpr void send(const blocks& sent) {
    if (!sending_) return;
    block* to = program_.sent.extend(sent.count * sent.slices);
    if (sent.count * sent.slices == 1)  // as most are
      *to = {sent.side, static_cast<std::uint16_t>(sent.chunk),
             sent.first >= 0 && sent.first < world_ ? sent.first : wrapped(sent.first), sent.slice};
    else
      for (int slice = sent.slice; slice < sent.slice + sent.slices; ++slice, to += 1)
        for (int i = 0, shard = sent.first; i < sent.count; ++i, shard += sent.stride)
          to[i * sent.slices] = {sent.side, static_cast<std::uint16_t>(sent.chunk),
                                 shard >= 0 && shard < world_ ? shard : wrapped(shard), slice};
    program_.exchanges.items[program_.exchanges.count - 1].sent.count += sent.count * sent.slices;
  }
  constexpr void receive(const blocks& received) {
    if (!receiving_) return;
    append(program_.received, received);
    program_.exchanges.items[program_.exchanges.count - 1].received.count += received.count * received.slices;
  }

  /// Lets all pairs of `q` and `k` interact in this step. Called again in the same step, it adds blocks to both sides
  /// of the step's tile, which is always the full product of its sides.
  constexpr void interact(const blocks& q, const blocks& k) {
    append(q.side == side::query ? program_.queries : program_.keys, q);
    append(k.side == side::query ? program_.queries : program_.keys, k);
  }
  /// Adds blocks to one side of this step's tile.
  constexpr void add_to_tile(const blocks& added) {
    append(added.side == side::query ? program_.queries : program_.keys, added);
  }

  /// Ends this step and begins the next one.
  constexpr void next_step() {
    *program_.steps.extend(1) = {{0, 0},
                                 {exchanges_before_, program_.exchanges.count - exchanges_before_},
                                 {{queries_before_, program_.queries.count - queries_before_},
                                  {keys_before_, program_.keys.count - keys_before_}}};
    exchanges_before_ = program_.exchanges.count;
    queries_before_ = program_.queries.count;
    keys_before_ = program_.keys.count;
  }

  /// Collective: every member of `group` gets the home blocks of every other member, one direct exchange for each
  /// distance. Costs (members - 1) blocks and messages.
  constexpr void all_gather(const rank_group& group, side s, in_flight flight = {}) {
    const int first = program_.exchanges.count;
    const int me = group.index_of(program_.rank);
    for (int distance = 1; distance < group.count; ++distance) {
      const int to = group.member((me + distance) % group.count);
      const int from = group.member((me + group.count - distance) % group.count);
      begin_exchange(to, from, flight);
      send({s, rank_});
      receive({s, from});
    }
    mark_collective(collective_kind::all_gather, group, first);
  }

  /// Collective: every member of `group` sends each other member the partials it holds for that member's home shard.
  /// Costs (members - 1) blocks and messages. `holds(from, to)` may say that rank `from` has nothing for rank `to`.
  template <class Holds = every_two_ranks>
  constexpr void reduce_scatter(const rank_group& group, side s, in_flight flight = {}, const Holds& holds = {}) {
    const int first = program_.exchanges.count;
    const int me = group.index_of(program_.rank);
    for (int distance = 1; distance < group.count; ++distance) {
      const int to = group.member((me + distance) % group.count);
      const int from = group.member((me + group.count - distance) % group.count);
      begin_exchange(holds(program_.rank, to) ? to : no_rank, holds(from, program_.rank) ? from : no_rank, flight,
                     payload::partial);
      send({s, to});
      receive({s, program_.rank});
    }
    mark_collective(collective_kind::reduce_scatter, group, first);
  }

  /// Writes step `index` of another program of this rank into this step. `place` may move it to other ranks and blocks:
  /// place.rank(r) is the rank in place of r, which must be linear in r, and place.blocks_of(b) the blocks in place of
  /// b.
  template <class Place = same_place>
  constexpr void repeat(const program& other, int index, const Place& place = {}) {
    const step& original = other.steps[index];
    const int shift = program_.exchanges.count - original.exchanges.first;
    const auto peer = [&](int rank) { return rank == no_rank ? no_rank : place.rank(rank); };
    for (const exchange& posted : other.exchanges_of(original)) {
      begin_exchange(peer(posted.to), peer(posted.from), {posted.lane, posted.complete_before - posted.posted},
                     posted.payload);
      for (const block& sent : other.sent_by(posted)) send(place.blocks_of(sent));
      for (const held_block& received : other.received_by(posted)) receive(place.blocks_of(received.block));
    }
    for (const collective& native : other.collectives) {
      if (!original.exchanges.contains(native.exchanges.first)) continue;
      const int first = place.rank(native.first_rank);
      const int stride = place.rank(native.first_rank + native.rank_stride) - first;
      mark_collective(native.kind, {first, native.ranks, stride},
                      range{native.exchanges.first + shift, native.exchanges.count});
    }
    for (const held_block& query : other.queries_of(original.tile)) add_to_tile(place.blocks_of(query.block));
    for (const held_block& key : other.keys_of(original.tile)) add_to_tile(place.blocks_of(key.block));
  }

  /// Marks the exchanges of this step from index `first` on as a collective over `group`.
  constexpr void mark_collective(collective_kind kind, const rank_group& group, int first) {
    mark_collective(kind, group, {first, program_.exchanges.count - first});
  }
  /// Marks some exchanges of this step as a collective over `group`.
  constexpr void mark_collective(collective_kind kind, const rank_group& group, const range& exchanges) {
    if (exchanges.count > 0) program_.collectives.push_back({kind, group.first, group.count, group.stride, exchanges});
  }
  [[nodiscard]] constexpr int exchanges_so_far() const noexcept { return program_.exchanges.count; }

  /// The program as written, without slots and completions (see `finish`). Empty steps at the end are dropped.
  // NOLINTNEXTLINE(google-explicit-constructor): `return schedule;` is how a topology ends
  constexpr operator program() {
    next_step();
    drop_empty_end();
    return static_cast<program&&>(program_);
  }

 private:
  [[nodiscard]] constexpr int wrapped(int shard) const noexcept { return (shard % world_ + world_) % world_; }

  constexpr void append(list<held_block>& holders, const blocks& added) {
    held_block* to = holders.extend(added.count * added.slices);
    if (added.count * added.slices == 1)
      *to = {{added.side, static_cast<std::uint16_t>(added.chunk),
              added.first >= 0 && added.first < world_ ? added.first : wrapped(added.first), added.slice},
             no_slot};
    else
      for (int slice = added.slice; slice < added.slice + added.slices; ++slice, to += 1)
        for (int i = 0, shard = added.first; i < added.count; ++i, shard += added.stride)
          to[i * added.slices] = {{added.side, static_cast<std::uint16_t>(added.chunk),
                                   shard >= 0 && shard < world_ ? shard : wrapped(shard), slice},
                                  no_slot};
  }

  constexpr void drop_empty_end() {
    while (!program_.steps.empty() && program_.steps.back().exchanges.count == 0 &&
           program_.steps.back().tile.empty()) {
      program_.steps.pop_back();
    }
    // An exchange that may still be under way after the last step is awaited after as many idle ones.
    int last = program_.steps.count;
    for (int e = 0; e < program_.exchanges.count; ++e)
      if (program_.exchanges.items[e].complete_before > last) last = program_.exchanges.items[e].complete_before;
    while (program_.steps.count < last) next_step();
  }

  program program_;
  int rank_;
  int world_;
  int exchanges_before_ = 0;
  int queries_before_ = 0;
  int keys_before_ = 0;
  bool sending_ = false;
  bool receiving_ = false;
};

}  // namespace orrery::schedule

namespace orrery {
using schedule::builder;
}  // namespace orrery
