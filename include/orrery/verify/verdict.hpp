// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
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
/// the compilation inside a function of namespace `orrery::invalid_schedule`, whose name, arguments and text say what
/// is wrong; `ok()` and `found` can be asked for without that.
struct verdict {
  fault found = fault::none;
  int world = 0;
  int rank = 0;                     ///< where
  int step = 0;                     ///< when
  orrery::schedule::block block{};  ///< of what (of a pair: the query block)
  int peer = 0;                     ///< with whom (of a pair: the key shard)
  const char* reason = nullptr;     ///< why the world was refused

  [[nodiscard]] constexpr bool ok() const noexcept { return found == fault::none; }
  /// A template, so that a program which converts none need not compile what follows for each number of a rank.
  template <std::same_as<bool> Bool>
  explicit constexpr operator Bool() const;

  /// One message: what is wrong, where, and what to do about it.
  [[nodiscard]] std::string message() const;
  friend std::ostream& operator<<(std::ostream& out, const verdict& v) { return out << v.message(); }
};

/// Where a fault found at compile time ends. The compiler prints the calls that lead there, and in them the rank, step
/// and shards at fault (64 stands for 64 and more), and the line of a `throw`, which is the message.
namespace invalid_schedule {

// The conditions are always true; a function that could never be constant would not be allowed to be constexpr.
// NOLINTBEGIN(bugprone-easily-swappable-parameters,misc-unused-parameters)
constexpr void world_is_not_admitted(int world, const char* reason) {
  if (reason != nullptr || world < 1)
    throw "this topology does not admit this number of ranks: its unsupported_reason(world) says why, and what would work";
}
constexpr void program_says_it_is_for_another_rank_or_world(int rank) {
  if (rank >= 0)
    throw "a program must be for the rank, world, pass and number of slices that it was asked for: pass them on to the builder";
}
constexpr void lane_does_not_exist([[maybe_unused]] int lane, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "lanes are numbered from 0 to 15";
}
constexpr void peer_does_not_exist([[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "an exchange names a peer outside the world, or the rank itself: peers are 0 .. world - 1, and never oneself";
}
constexpr void block_does_not_exist([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank,
                                    [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "a step names a shard or a slice that does not exist: shards are 0 .. world - 1, slices 0 .. slices(world) - 1";
}
constexpr void exchange_takes_no_step([[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "an exchange must be complete in a later step than the one which posts it, and before the program ends";
}
constexpr void block_is_sent_but_not_received([[maybe_unused]] int shard, [[maybe_unused]] int peer, int rank,
                                              [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "this rank sends a message to a peer that does not receive it: let the peer name it in the same lane and order";
}
constexpr void block_is_awaited_but_not_sent([[maybe_unused]] int shard, [[maybe_unused]] int peer, int rank,
                                             [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "this rank awaits a message from a peer that does not send it: let the peer name it in the same lane and order";
}
constexpr void sender_and_receiver_name_different_blocks([[maybe_unused]] int shard, [[maybe_unused]] int peer,
                                                         int rank, [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "the peer sends other blocks than this rank expects: name the same blocks, in the same order, at both ends";
}
constexpr void operand_is_not_on_this_rank([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank,
                                           [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "a tile or an exchange uses a block that has not arrived on this rank: receive it in an earlier step";
}
constexpr void block_has_no_slot([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank,
                                 [[maybe_unused]] int step) {
  if (rank >= 0)
    throw "a block is received, or a partial begun, in a slot that does not exist: call finish after changing a "
          "program";
}
constexpr void slot_is_overwritten([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank,
                                   [[maybe_unused]] int step) {
  if (rank >= 0) throw "a slot is written while its block is still needed: free it later, or take another one";
}
constexpr void tile_mixes_sides_or_slices([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank,
                                          [[maybe_unused]] int step) {
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
constexpr void partial_is_sent_but_not_held([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank,
                                            [[maybe_unused]] int step) {
  if (rank >= 0) throw "a partial is sent twice, or before anything was added to it: partials are moved, never copied";
}
constexpr void partial_leaves_its_home([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank,
                                       [[maybe_unused]] int step) {
  if (rank >= 0) throw "a partial is sent away from its home, where it belongs: leave it there";
}
constexpr void partial_never_comes_home([[maybe_unused]] int shard, [[maybe_unused]] int slice, int rank) {
  if (rank >= 0) throw "a partial ends on this rank, which is not its shard's home: send it on, with payload::partial";
}
constexpr void ranks_wait_for_each_other([[maybe_unused]] int peer, int rank, [[maybe_unused]] int step) {
  if (rank >= 0) throw "ranks wait for each other in a circle: post the exchange earlier, or let it complete later";
}
// NOLINTEND(bugprone-easily-swappable-parameters,misc-unused-parameters)

constexpr void because(const verdict& v) {
  switch (v.found) {
    case fault::none:
      break;
    case fault::world_refused:
      world_is_not_admitted(v.world, v.reason);
      break;
    case fault::program_of_another:
      program_says_it_is_for_another_rank_or_world(v.rank);
      break;
    case fault::lane_does_not_exist:
      lane_does_not_exist(v.peer, v.rank, v.step);
      break;
    case fault::peer_outside_world:
      peer_does_not_exist(v.peer, v.rank, v.step);
      break;
    case fault::block_outside_world:
      block_does_not_exist(v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::exchange_takes_no_step:
      exchange_takes_no_step(v.peer, v.rank, v.step);
      break;
    case fault::send_unmatched:
      block_is_sent_but_not_received(v.block.shard, v.peer, v.rank, v.step);
      break;
    case fault::receive_unmatched:
      block_is_awaited_but_not_sent(v.block.shard, v.peer, v.rank, v.step);
      break;
    case fault::blocks_disagree:
      sender_and_receiver_name_different_blocks(v.block.shard, v.peer, v.rank, v.step);
      break;
    case fault::operand_missing:
      operand_is_not_on_this_rank(v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::slot_missing:
      block_has_no_slot(v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::slot_overwritten:
      slot_is_overwritten(v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::sides_confused:
      tile_mixes_sides_or_slices(v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::pair_computed_twice:
      query_shard_meets_key_shard_twice(v.block.shard, v.peer, v.block.slice, v.rank, v.step);
      break;
    case fault::pair_missing:
      query_shard_never_meets_key_shard(v.block.shard, v.peer, v.block.slice, v.rank);
      break;
    case fault::partial_not_held:
      partial_is_sent_but_not_held(v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::partial_leaves_home:
      partial_leaves_its_home(v.block.shard, v.block.slice, v.rank, v.step);
      break;
    case fault::partial_stranded:
      partial_never_comes_home(v.block.shard, v.block.slice, v.rank);
      break;
    case fault::deadlock:
      ranks_wait_for_each_other(v.peer, v.rank, v.step);
      break;
  }
}

// Void, but dependent on a template's parameter: a call with it is not instantiated before its template is.
template <bool Always>
using later = std::conditional_t<Always, void, int>;

// clang prints the values of a call's arguments, g++ only template arguments: hence a type for each number.
template <template <int> class Is, class Later>
constexpr void say(int number, const verdict& v) {
  // clang-format off
  switch (number) {
    case 0: return Is<0>::at(v); case 1: return Is<1>::at(v); case 2: return Is<2>::at(v); case 3: return Is<3>::at(v);
    case 4: return Is<4>::at(v); case 5: return Is<5>::at(v); case 6: return Is<6>::at(v); case 7: return Is<7>::at(v);
    case 8: return Is<8>::at(v); case 9: return Is<9>::at(v); case 10: return Is<10>::at(v); case 11: return Is<11>::at(v);
    case 12: return Is<12>::at(v); case 13: return Is<13>::at(v); case 14: return Is<14>::at(v); case 15: return Is<15>::at(v);
    case 16: return Is<16>::at(v); case 17: return Is<17>::at(v); case 18: return Is<18>::at(v); case 19: return Is<19>::at(v);
    case 20: return Is<20>::at(v); case 21: return Is<21>::at(v); case 22: return Is<22>::at(v); case 23: return Is<23>::at(v);
    case 24: return Is<24>::at(v); case 25: return Is<25>::at(v); case 26: return Is<26>::at(v); case 27: return Is<27>::at(v);
    case 28: return Is<28>::at(v); case 29: return Is<29>::at(v); case 30: return Is<30>::at(v); case 31: return Is<31>::at(v);
    case 32: return Is<32>::at(v); case 33: return Is<33>::at(v); case 34: return Is<34>::at(v); case 35: return Is<35>::at(v);
    case 36: return Is<36>::at(v); case 37: return Is<37>::at(v); case 38: return Is<38>::at(v); case 39: return Is<39>::at(v);
    case 40: return Is<40>::at(v); case 41: return Is<41>::at(v); case 42: return Is<42>::at(v); case 43: return Is<43>::at(v);
    case 44: return Is<44>::at(v); case 45: return Is<45>::at(v); case 46: return Is<46>::at(v); case 47: return Is<47>::at(v);
    case 48: return Is<48>::at(v); case 49: return Is<49>::at(v); case 50: return Is<50>::at(v); case 51: return Is<51>::at(v);
    case 52: return Is<52>::at(v); case 53: return Is<53>::at(v); case 54: return Is<54>::at(v); case 55: return Is<55>::at(v);
    case 56: return Is<56>::at(v); case 57: return Is<57>::at(v); case 58: return Is<58>::at(v); case 59: return Is<59>::at(v);
    case 60: return Is<60>::at(v); case 61: return Is<61>::at(v); case 62: return Is<62>::at(v); case 63: return Is<63>::at(v);
    default: return Is<64>::at(v);
  }
  // clang-format on
}
template <int KeyShard>
struct key_shard {
  static constexpr void at(const verdict& v) { because(v); }
};
template <int QueryShard>
struct query_shard {
  static constexpr void at(const verdict& v) { say<key_shard, later<(QueryShard >= 0)>>(v.peer, v); }
};
template <int Peer>
struct peer {
  static constexpr void at(const verdict& v) { because(v); }
};
template <int Shard>
struct shard {
  static constexpr void at(const verdict& v) { say<peer, later<(Shard >= 0)>>(v.peer, v); }
};
template <int Step>
struct step {
  static constexpr void at(const verdict& v) {
    if (v.found == fault::pair_missing || v.found == fault::pair_computed_twice)
      return say<query_shard, later<(Step >= 0)>>(v.block.shard, v);
    say<shard, later<(Step >= 0)>>(v.block.shard, v);
  }
};
template <int Rank>
struct rank {
  static constexpr void at(const verdict& v) { say<step, later<(Rank >= 0)>>(v.step, v); }
};

}  // namespace invalid_schedule

template <std::same_as<bool> Bool>
constexpr verdict::operator Bool() const {
  if (!ok() && std::is_constant_evaluated())
    invalid_schedule::say<invalid_schedule::rank, invalid_schedule::later<std::same_as<Bool, bool>>>(rank, *this);
  return ok();
}

inline std::string verdict::message() const {
  const auto number = [](int n) { return std::to_string(n); };
  const std::string side_name = block.side == schedule::side::query ? "query" : "key";
  const std::string slice_name = block.slice == 0 ? "" : " (slice " + number(block.slice) + ")";
  const std::string what = side_name + " shard " + number(block.shard) + slice_name;
  const std::string where = "rank " + number(rank) + ", step " + number(step) + ": ";
  switch (found) {
    case fault::none:
      return "the schedule is right for " + number(world) + " ranks";
    case fault::world_refused:
      return "a world of " + number(world) + " ranks is refused: the topology " +
             (reason != nullptr ? reason : "does not admit it");
    case fault::program_of_another:
      return "the program of rank " + number(rank) +
             " is for another rank, world, pass or number of slices; pass on to the builder what program(...) was "
             "given";
    case fault::lane_does_not_exist:
      return where + "lane " + number(peer) + " does not exist; lanes are numbered from 0 to 15";
    case fault::peer_outside_world:
      return where + "an exchange names peer " + number(peer) + ", but peers are 0 to " + number(world - 1) +
             " and never the rank itself";
    case fault::block_outside_world:
      return where + what + " does not exist; shards are 0 to " + number(world - 1) + " and slices below slices(world)";
    case fault::exchange_takes_no_step:
      return where + "the exchange with rank " + number(peer) +
             " must be complete in a later step than the one which posts it, and before the program ends";
    case fault::send_unmatched:
      return where + what + " is sent to rank " + number(peer) +
             ", which does not receive it; let it, in the same lane and order";
    case fault::receive_unmatched:
      return where + what + " is awaited from rank " + number(peer) +
             ", which does not send it; let it, in the same lane and order";
    case fault::blocks_disagree:
      return where + what + " is expected from rank " + number(peer) +
             ", which sends something else; name the same blocks in the same order at both ends";
    case fault::operand_missing:
      return where + what + " is used, but it is not on this rank; receive it in an earlier step";
    case fault::slot_missing:
      return where + what +
             " is received, or its partial begun, in a slot that does not exist; call finish after changing a program";
    case fault::slot_overwritten:
      return where + "the slot of " + what +
             " is written while the block is still needed; free it later, or take another slot";
    case fault::sides_confused:
      return where + what + " does not belong into this tile, which is query blocks times key blocks of one slice";
    case fault::pair_computed_twice:
      return where + what + " meets key shard " + number(peer) + " for the second time; leave one of the two tiles out";
    case fault::pair_missing:
      return what + " never meets key shard " + number(peer) + "; let the two interact, for example on rank " +
             number(rank) + ", which has the queries";
    case fault::partial_not_held:
      return where + "the partial of " + what +
             " is sent, but this rank does not hold it (any more); partials are moved, never copied";
    case fault::partial_leaves_home:
      return where + "the partial of " + what + " is sent away from its home; leave it there";
    case fault::partial_stranded:
      return "the partial of " + what + " ends on rank " + number(rank) + "; send it on to rank " +
             number(block.shard) + ", its home, as payload::partial";
    case fault::deadlock:
      return where + "the rank waits for rank " + number(peer) +
             ", which, directly or through others, waits for it; post the exchange earlier or let it complete later";
  }
  return "unknown fault";
}

}  // namespace orrery
