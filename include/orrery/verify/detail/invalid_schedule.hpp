// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

// What a compiler prints about a schedule that is wrong at compile time: the faults, and their messages. See `verdict`,
// which includes this file. The numbers beside the messages are in printed_numbers.hpp, which this file includes.

#include "orrery/schedule/block.hpp"
#include "orrery/verify/detail/fault_clue.hpp"
#include "orrery/verify/verdict.hpp"

/// Where a fault found at compile time ends. The compiler prints the calls that lead there, and in them the rank, step,
/// shards and so on at fault (64 stands for 64 and more, -1 for less than 0), and the line of a `throw`, which is the
/// message.
namespace orrery::invalid_schedule {

// The conditions are always true; a function that could never be constant would not be allowed to be constexpr. Clang
// prints the arguments of these calls.
// NOLINTBEGIN(bugprone-easily-swappable-parameters,misc-unused-parameters)
inline constexpr char why_it_is_refused[] = "";
constexpr void world_is_not_admitted(int world, const char* reason) {
  // Addresses in two objects have no order: a compiler that stops here prints the reason.
  if (reason < +why_it_is_refused) throw "this topology does not admit this number of ranks, and says why";
  if (world >= 0) throw "this topology does not admit this number of ranks";
}
constexpr void inner_topology_does_not_admit_its_world([[maybe_unused]] int inner_world, int world,
                                                       const char* reason) {
  if (reason < +why_it_is_refused) throw "a topology inside this one does not admit its number of ranks, and says why";
  if (world >= 0) throw "a topology inside this one does not admit its number of ranks";
}
constexpr void program_says_it_is_for_another_rank_or_world(int rank) {
  if (rank >= 0)
    throw "a program must be for the rank, world, pass and number of slices that it was asked for: pass them on to the builder";
}
constexpr void lane_does_not_exist([[maybe_unused]] int lane, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "lanes are numbered from 0 to 15";
}
constexpr void exchange_carries_a_tensor_alone([[maybe_unused]] int tensor, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "an exchange carries one tensor of its blocks: leave exchange::tensor at every_tensor";
}
constexpr void peer_does_not_exist([[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "an exchange names a peer outside the world, or the rank itself: peers are 0 .. world - 1, and never oneself";
}
constexpr void world_does_not_suit_the_topology_or_a_peer_is_wrong([[maybe_unused]] int world,
                                                                   [[maybe_unused]] int peer, int rank,
                                                                   [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "an exchange names a peer outside the world: refuse such a world with unsupported_reason(world), or correct the peer";
}
constexpr void block_does_not_exist([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                    [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "a step names a shard or a slice that does not exist: shards are 0 .. world - 1, slices 0 .. slices(world) - 1";
}
constexpr void exchange_takes_no_step([[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "an exchange must be complete in a later step than the one which posts it, and before the program ends";
}
constexpr void block_is_sent_but_not_received([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                              [[maybe_unused]] int peer, [[maybe_unused]] int lane, int rank,
                                              [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "this rank sends a message to a peer that does not receive it: let the peer name it in the same lane and order";
}
constexpr void block_is_awaited_but_not_sent([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                             [[maybe_unused]] int peer, [[maybe_unused]] int lane, int rank,
                                             [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "this rank awaits a message from a peer that does not send it: let the peer name it in the same lane and order";
}
constexpr void sender_and_receiver_name_different_lanes([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                                        [[maybe_unused]] int peer, [[maybe_unused]] int lane,
                                                        [[maybe_unused]] int lane_of_peer,
                                                        [[maybe_unused]] int step_of_peer, int rank,
                                                        [[maybe_unused]] int step) {
  if (rank >= 0) throw "the two ends of a message are in different lanes: name one lane at both ends";
}
constexpr void sender_and_receiver_name_different_blocks([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                                         [[maybe_unused]] const char* arriving_side,
                                                         [[maybe_unused]] int arriving_shard, [[maybe_unused]] int peer,
                                                         [[maybe_unused]] int lane, [[maybe_unused]] int step_of_peer,
                                                         int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "the peer sends other blocks than this rank expects: name the same blocks, in the same order, at both ends";
}
constexpr void operand_is_not_on_this_rank([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                           [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "a tile or an exchange uses a block that has not arrived on this rank: receive it in an earlier step";
}
constexpr void operand_is_in_flight([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                    [[maybe_unused]] int received_in_step, [[maybe_unused]] int usable_in_step,
                                    int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "a tile or an exchange uses a block before it arrives: use it in a later step, or let its exchange take fewer steps";
}
constexpr void operand_is_sent_but_not_received([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                                [[maybe_unused]] int sender, [[maybe_unused]] int lane,
                                                [[maybe_unused]] int step_of_sender, int rank,
                                                [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "a tile or an exchange uses a block that is sent to this rank, but not received: receive it in that lane and order";
}
constexpr void block_has_no_slot([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                 [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "a block is received, or a partial begun, in a slot that does not exist: call finish after changing a "
          "program";
}
constexpr void slot_is_overwritten([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                   [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a slot is written while its block is still needed: free it later, or take another one";
}
constexpr void tile_mixes_sides_or_slices([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                          [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a tile is query blocks times key blocks of one slice: do not mix sides or slices";
}
constexpr void query_shard_meets_key_shard_twice([[maybe_unused]] int query_shard, [[maybe_unused]] int key_shard,
                                                 [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "a pair of a query shard and a key shard is computed twice: leave out this rank's tile of this step, or the other one";
}
constexpr void query_shard_never_meets_key_shard([[maybe_unused]] int query_shard, [[maybe_unused]] int key_shard,
                                                 [[maybe_unused]] int slice, int rank) {
  if (rank >= 0)
    throw "a pair of a query shard and a key shard is computed by no rank: this rank has the query shard; let the two interact there";
}
constexpr void partial_is_sent_but_not_held([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                            [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a partial is sent twice, or before anything was added to it: partials are moved, never copied";
}
constexpr void partial_leaves_its_home([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                       [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a partial is sent away from its home, where it belongs: leave it there";
}
constexpr void partial_never_comes_home([[maybe_unused]] const char* side, [[maybe_unused]] int shard,
                                        [[maybe_unused]] int slice, int rank) {
  if (rank >= 0) throw "a partial ends on this rank, which is not its shard's home: send it on, with payload::partial";
}
constexpr void ranks_wait_for_each_other([[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "ranks wait for each other in a circle: post the exchange earlier, or let it complete later";
}
// NOLINTEND(bugprone-easily-swappable-parameters,misc-unused-parameters)

constexpr const char* name_of(schedule::side s) { return s == schedule::side::query ? "query" : "key"; }

/// Fails with the message of one end of a message that has no other end.
constexpr void fail_unmatched(const verdict& v) {
  const char* const side = name_of(v.block.side);
  if (v.found == fault::send_unmatched)
    block_is_sent_but_not_received(side, v.block.shard, v.peer, v.lane, v.rank, v.step);
  block_is_awaited_but_not_sent(side, v.block.shard, v.peer, v.lane, v.rank, v.step);
}
/// Says where the other end may be, and fails.
constexpr void and_there_is_this_exchange_instead([[maybe_unused]] int other_rank, [[maybe_unused]] const char* side,
                                                  [[maybe_unused]] int shard, [[maybe_unused]] int lane,
                                                  [[maybe_unused]] int step, const verdict& v) {
  fail_unmatched(v);
}

/// Fails with the fault's message.
constexpr void fail(const verdict& v) {
  using clue = detail::fault_clue::kind;
  const detail::fault_clue& c = v.clue;
  const char* const side = name_of(v.block.side);
  switch (v.found) {
    case fault::none:
      break;
    case fault::world_refused:
      if (v.refused_part.name != nullptr)
        inner_topology_does_not_admit_its_world(v.refused_part.world, v.world, v.reason);
      world_is_not_admitted(v.world, v.reason);
      break;
    case fault::program_of_another:
      program_says_it_is_for_another_rank_or_world(v.rank);
      break;
    case fault::lane_does_not_exist:
      lane_does_not_exist(v.peer, v.rank, v.step);
      break;
    case fault::tensor_alone:
      exchange_carries_a_tensor_alone(v.peer, v.rank, v.step);
      break;
    case fault::peer_outside_world:
      if (v.any_world) world_does_not_suit_the_topology_or_a_peer_is_wrong(v.world, v.peer, v.rank, v.step);
      peer_does_not_exist(v.peer, v.rank, v.step);
      break;
    case fault::block_outside_world:
      block_does_not_exist(side, v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::exchange_takes_no_step:
      exchange_takes_no_step(v.peer, v.rank, v.step);
      break;
    case fault::send_unmatched:
    case fault::receive_unmatched:
      if (c.found == clue::other_lane)
        sender_and_receiver_name_different_lanes(side, v.block.shard, v.peer, v.lane, c.lane, c.step, v.rank, v.step);
      if (c.found != clue::none)
        and_there_is_this_exchange_instead(c.rank, name_of(c.block.side), c.block.shard, c.lane, c.step, v);
      fail_unmatched(v);
      break;
    case fault::blocks_disagree:
      sender_and_receiver_name_different_blocks(side, v.block.shard, name_of(c.block.side), c.block.shard, v.peer,
                                                v.lane, c.step, v.rank, v.step);
      break;
    case fault::operand_missing:
      if (c.found == clue::in_flight) operand_is_in_flight(side, v.block.shard, c.step, c.until, v.rank, v.step);
      if (c.found == clue::not_received)
        operand_is_sent_but_not_received(side, v.block.shard, c.rank, c.lane, c.step, v.rank, v.step);
      operand_is_not_on_this_rank(side, v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::slot_missing:
      block_has_no_slot(side, v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::slot_overwritten:
      slot_is_overwritten(side, v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::sides_confused:
      tile_mixes_sides_or_slices(side, v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::pair_computed_twice:
      query_shard_meets_key_shard_twice(v.block.shard, v.peer, v.block.slice, v.rank, v.step);
      break;
    case fault::pair_missing:
      query_shard_never_meets_key_shard(v.block.shard, v.peer, v.block.slice, v.rank);
      break;
    case fault::partial_not_held:
      partial_is_sent_but_not_held(side, v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::partial_leaves_home:
      partial_leaves_its_home(side, v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::partial_stranded:
      partial_never_comes_home(side, v.block.shard, v.block.slice, v.rank);
      break;
    case fault::deadlock:
      ranks_wait_for_each_other(v.peer, v.rank, v.step);
      break;
  }
}

/// Says that the world may be what is wrong, and fails.
constexpr void unless_the_topology_refuses_this_world_by_unsupported_reason([[maybe_unused]] int world,
                                                                            const verdict& v) {
  fail(v);
}

}  // namespace orrery::invalid_schedule

#include "orrery/verify/detail/printed_numbers.hpp"
