// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <type_traits>

#include "orrery/schedule/block.hpp"

namespace orrery {

/// What can be wrong with a schedule.
enum class fault : std::uint8_t {
  none,
  world_refused,           ///< the topology does not admit this world
  program_of_another,      ///< the program says that it is another rank's, or for another world, pass or slicing
  lane_does_not_exist,     ///< lanes are numbered from 0 to 15
  peer_outside_world,      ///< an exchange with a rank that does not exist, or with oneself
  block_outside_world,     ///< a shard or slice that does not exist
  exchange_takes_no_step,  ///< an exchange that must be complete in the step that posts it, or never is
  send_unmatched,          ///< sent, but the peer does not receive it
  receive_unmatched,       ///< awaited, but the peer does not send it
  blocks_disagree,         ///< the two ends of a message name different blocks
  operand_missing,         ///< used, or sent on, by a rank that does not have it (yet)
  slot_missing,            ///< a block is received, or a partial begun, in no slot of the program
  slot_overwritten,        ///< the slot holds something else by now, or is written while it is still being read
  sides_confused,          ///< a tile with blocks of the wrong side, or of several slices
  pair_computed_twice,     ///< a (query shard, key shard, slice) computed for the second time
  pair_missing,            ///< a visible (query shard, key shard, slice) that no rank computes
  partial_not_held,        ///< a partial sent twice, or before anything was added to it
  partial_leaves_home,     ///< a partial sent away from the rank where it belongs
  partial_stranded,        ///< a partial that ends on a rank which is not its shard's home
  deadlock,                ///< ranks that wait for each other in a circle
};

/// The answer of `verify`: right, or the first fault and its place.
///
/// It converts to bool. Where that happens during compilation, as in `static_assert(orrery::verify(...))`, a fault ends
/// the compilation inside a function of namespace `orrery::refused`, whose name, arguments and text say what is wrong;
/// `ok()` and `found` can be asked for without that.
struct verdict {
  fault found = fault::none;
  int world = 0;
  int rank = 0;                  ///< where
  int step = 0;                  ///< when
  orrery::block block{};         ///< of what (of a pair: the query block)
  int peer = 0;                  ///< with whom (of a pair: the key shard)
  const char* reason = nullptr;  ///< why the world was refused

  [[nodiscard]] constexpr bool ok() const noexcept { return found == fault::none; }
  explicit constexpr operator bool() const;

  /// One sentence: what is wrong, where, and what to do about it.
  [[nodiscard]] std::string sentence() const;
  friend std::ostream& operator<<(std::ostream& out, const verdict& v) { return out << v.sentence(); }
};

/// Where a fault found at compile time ends. The compiler prints the call, and so the ranks, steps and shards at fault,
/// and the line of the `throw`, which is the sentence.
namespace refused {

// The conditions are always true; a function that could never be constant would not be allowed to be constexpr.
// NOLINTBEGIN(bugprone-easily-swappable-parameters,misc-unused-parameters)
constexpr void world_is_not_admitted(int world, const char* reason) {
  if (reason != nullptr || world < 1) throw "this topology does not admit this number of ranks: the reason is the call's last argument";
}
constexpr void program_says_it_is_for_another_rank_or_world(int rank) {
  if (rank >= 0) throw "a program must be for the rank, world, pass and number of slices that it was asked for: pass them on to the builder";
}
constexpr void lane_does_not_exist([[maybe_unused]] int lane, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "lanes are numbered from 0 to 15";
}
constexpr void peer_does_not_exist([[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "an exchange names a peer outside the world, or the rank itself: peers are 0 .. world - 1, and never oneself";
}
constexpr void block_does_not_exist([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a step names a shard or a slice that does not exist: shards are 0 .. world - 1, slices 0 .. slices(world) - 1";
}
constexpr void exchange_takes_no_step([[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "an exchange must be complete in a later step than the one which posts it, and before the program ends";
}
constexpr void block_is_sent_but_not_received([[maybe_unused]] int shard, [[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "this rank sends a message to a peer that does not receive it: let the peer name it in the same lane and order";
}
constexpr void block_is_awaited_but_not_sent([[maybe_unused]] int shard, [[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "this rank awaits a message from a peer that does not send it: let the peer name it in the same lane and order";
}
constexpr void sender_and_receiver_name_different_blocks([[maybe_unused]] int shard, [[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "the peer sends other blocks than this rank expects: name the same blocks, in the same order, at both ends";
}
constexpr void operand_is_not_on_this_rank([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a tile or an exchange uses a block that has not arrived on this rank: receive it in an earlier step";
}
constexpr void block_has_no_slot([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a block is received, or a partial begun, in a slot that does not exist: call assign_slots after changing a program";
}
constexpr void slot_is_overwritten([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a slot is written while its block is still needed: free it later, or take another one";
}
constexpr void tile_mixes_sides_or_slices([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a tile is query blocks times key blocks of one slice: do not mix sides or slices";
}
constexpr void query_shard_meets_key_shard_twice([[maybe_unused]] int query_shard, [[maybe_unused]] int key_shard, [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a pair of a query shard and a key shard is computed twice: leave out this rank's tile of this step, or the other one";
}
constexpr void query_shard_never_meets_key_shard([[maybe_unused]] int query_shard, [[maybe_unused]] int key_shard, [[maybe_unused]] int slice, int rank) {
  if (rank >= 0) throw "a pair of a query shard and a key shard is computed by no rank: this rank has the query shard; let the two interact there";
}
constexpr void partial_is_sent_but_not_held([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a partial is sent twice, or before anything was added to it: partials are moved, never copied";
}
constexpr void partial_leaves_its_home([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "a partial is sent away from its home, where it belongs: leave it there";
}
constexpr void partial_never_comes_home([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank) {
  if (rank >= 0) throw "a partial ends on this rank, which is not its shard's home: send it on, with cargo::partial";
}
constexpr void ranks_wait_for_each_other([[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "ranks wait for each other in a circle: post the exchange earlier, or let it complete later";
}
// NOLINTEND(bugprone-easily-swappable-parameters,misc-unused-parameters)

}  // namespace refused

constexpr verdict::operator bool() const {
  if (std::is_constant_evaluated()) {
    switch (found) {
      case fault::none: break;
      case fault::world_refused: refused::world_is_not_admitted(world, reason); break;
      case fault::program_of_another: refused::program_says_it_is_for_another_rank_or_world(rank); break;
      case fault::lane_does_not_exist: refused::lane_does_not_exist(peer, rank, step); break;
      case fault::peer_outside_world: refused::peer_does_not_exist(peer, rank, step); break;
      case fault::block_outside_world: refused::block_does_not_exist(block.shard, block.slice, rank, step); break;
      case fault::exchange_takes_no_step: refused::exchange_takes_no_step(peer, rank, step); break;
      case fault::send_unmatched: refused::block_is_sent_but_not_received(block.shard, peer, rank, step); break;
      case fault::receive_unmatched: refused::block_is_awaited_but_not_sent(block.shard, peer, rank, step); break;
      case fault::blocks_disagree: refused::sender_and_receiver_name_different_blocks(block.shard, peer, rank, step); break;
      case fault::operand_missing: refused::operand_is_not_on_this_rank(block.shard, block.slice, rank, step); break;
      case fault::slot_missing: refused::block_has_no_slot(block.shard, block.slice, rank, step); break;
      case fault::slot_overwritten: refused::slot_is_overwritten(block.shard, block.slice, rank, step); break;
      case fault::sides_confused: refused::tile_mixes_sides_or_slices(block.shard, block.slice, rank, step); break;
      case fault::pair_computed_twice: refused::query_shard_meets_key_shard_twice(block.shard, peer, block.slice, rank, step); break;
      case fault::pair_missing: refused::query_shard_never_meets_key_shard(block.shard, peer, block.slice, rank); break;
      case fault::partial_not_held: refused::partial_is_sent_but_not_held(block.shard, block.slice, rank, step); break;
      case fault::partial_leaves_home: refused::partial_leaves_its_home(block.shard, block.slice, rank, step); break;
      case fault::partial_stranded: refused::partial_never_comes_home(block.shard, block.slice, rank); break;
      case fault::deadlock: refused::ranks_wait_for_each_other(peer, rank, step); break;
    }
  }
  return ok();
}

inline std::string verdict::sentence() const {
  const auto number = [](int n) { return std::to_string(n); };
  const std::string side_name = block.side == side::query ? "query" : "key";
  const std::string slice_name = block.slice == 0 ? "" : " (slice " + number(block.slice) + ")";
  const std::string what = side_name + " shard " + number(block.shard) + slice_name;
  const std::string where = "rank " + number(rank) + ", step " + number(step) + ": ";
  switch (found) {
    case fault::none: return "the schedule is right for " + number(world) + " ranks";
    case fault::world_refused:
      return "a world of " + number(world) + " ranks is refused: the topology " + (reason != nullptr ? reason : "does not admit it");
    case fault::program_of_another:
      return "the program of rank " + number(rank) + " is for another rank, world, pass or number of slices; pass on to the builder what program(...) was given";
    case fault::lane_does_not_exist:
      return where + "lane " + number(peer) + " does not exist; lanes are numbered from 0 to 15";
    case fault::peer_outside_world:
      return where + "an exchange names peer " + number(peer) + ", but peers are 0 to " + number(world - 1) + " and never the rank itself";
    case fault::block_outside_world:
      return where + what + " does not exist; shards are 0 to " + number(world - 1) + " and slices below slices(world)";
    case fault::exchange_takes_no_step:
      return where + "the exchange with rank " + number(peer) + " must be complete in a later step than the one which posts it, and before the program ends";
    case fault::send_unmatched:
      return where + what + " is sent to rank " + number(peer) + ", which does not receive it; let it, in the same lane and order";
    case fault::receive_unmatched:
      return where + what + " is awaited from rank " + number(peer) + ", which does not send it; let it, in the same lane and order";
    case fault::blocks_disagree:
      return where + what + " is expected from rank " + number(peer) + ", which sends something else; name the same blocks in the same order at both ends";
    case fault::operand_missing:
      return where + what + " is used, but it is not on this rank; receive it in an earlier step";
    case fault::slot_missing:
      return where + what + " is received, or its partial begun, in a slot that does not exist; call assign_slots after changing a program";
    case fault::slot_overwritten:
      return where + "the slot of " + what + " is written while the block is still needed; free it later, or take another slot";
    case fault::sides_confused:
      return where + what + " does not belong into this tile, which is query blocks times key blocks of one slice";
    case fault::pair_computed_twice:
      return where + what + " meets key shard " + number(peer) + " for the second time; leave one of the two tiles out";
    case fault::pair_missing:
      return what + " never meets key shard " + number(peer) + "; let the two interact, for example on rank " + number(rank) + ", which has the queries";
    case fault::partial_not_held:
      return where + "the partial of " + what + " is sent, but this rank does not hold it (any more); partials are moved, never copied";
    case fault::partial_leaves_home:
      return where + "the partial of " + what + " is sent away from its home; leave it there";
    case fault::partial_stranded:
      return "the partial of " + what + " ends on rank " + number(rank) + "; send it on to rank " + number(block.shard) + ", its home, as cargo::partial";
    case fault::deadlock:
      return where + "the rank waits for rank " + number(peer) + ", which, directly or through others, waits for it; post the exchange earlier or let it complete later";
  }
  return "unknown fault";
}

}  // namespace orrery
