// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

// What a compiler prints about a schedule that is wrong at compile time: rank, step, shards and so on.

#include <concepts>
#include <type_traits>

#include "orrery/schedule/block.hpp"
#include "orrery/verify/detail/fault_clue.hpp"
#include "orrery/verify/detail/invalid_schedule.hpp"
#include "orrery/verify/verdict.hpp"

namespace orrery::invalid_schedule {

/// The numbers that belong to a fault, in the order in which they are printed.
enum class number {
  world,
  inner_world,
  rank,
  step,
  lane,
  query_shard,
  key_shard,
  peer,
  other_rank,
  its_step,
  its_lane,
  its_query_shard,
  its_key_shard,
  usable_in_step,
  end
};

/// True if this number belongs to this fault.
constexpr bool belongs(number n, const verdict& v) {
  using clue = detail::fault_clue::kind;
  const bool is_query = v.block.side == schedule::side::query;
  const bool is_pair = v.found == fault::pair_missing || v.found == fault::pair_computed_twice;
  const bool is_message =
      v.found == fault::send_unmatched || v.found == fault::receive_unmatched || v.found == fault::blocks_disagree;
  const bool has_peer = is_message || v.found == fault::peer_outside_world || v.found == fault::deadlock ||
                        v.found == fault::exchange_takes_no_step;
  const bool has_no_block = v.found == fault::world_refused || v.found == fault::program_of_another ||
                            v.found == fault::lane_does_not_exist || v.found == fault::tensor_alone ||
                            (has_peer && !is_message);
  const clue c = v.clue.found;
  const bool names_block = c == clue::other_block || c == clue::message_too_few;
  switch (n) {
    case number::world:
      return v.found == fault::world_refused || v.any_world;
    case number::inner_world:
      return v.refused_part.name != nullptr;
    case number::rank:
      return v.found != fault::world_refused;
    case number::step:
      return v.found != fault::world_refused && v.found != fault::program_of_another &&
             v.found != fault::pair_missing && v.found != fault::partial_stranded;
    case number::lane:
      return is_message || v.found == fault::lane_does_not_exist;
    case number::query_shard:
      return is_pair || (!has_no_block && is_query);
    case number::key_shard:
      return is_pair || (!has_no_block && !is_query);
    case number::peer:
      return has_peer;
    case number::other_rank:
      return c == clue::other_peer || c == clue::other_partner || c == clue::not_received;
    case number::its_step:
    case number::its_lane:
      return c != clue::none && c != clue::in_flight;
    case number::its_query_shard:
      return names_block && v.clue.block.side == schedule::side::query;
    case number::its_key_shard:
      return names_block && v.clue.block.side == schedule::side::key;
    case number::usable_in_step:
      return c == clue::in_flight;
    case number::end:
      break;
  }
  return true;
}

// Void, but dependent on a template's parameter: a call with it is not instantiated before its template is.
template <bool Always>
using later = std::conditional_t<Always, void, int>;

// Clang prints the values of a call's arguments, g++ only template arguments: hence a type for each number.
template <template <int> class Is, class Later>
constexpr void print(int number, const verdict& v) {
  if (number < 0) return Is<-1>::at(v);
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

template <class Later>
constexpr void print_from(number n, const verdict& v);

// What g++ prints.
// clang-format off
template <int N> struct world { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::inner_world, v); } };
template <int N> struct inner_world { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::rank, v); } };
template <int N> struct rank { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::step, v); } };
template <int N> struct step { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::lane, v); } };
template <int N> struct lane { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::query_shard, v); } };
template <int N> struct query_shard { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::key_shard, v); } };
template <int N> struct key_shard { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::peer, v); } };
template <int N> struct peer { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::other_rank, v); } };
template <int N> struct other_rank { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::its_step, v); } };
template <int N> struct its_step { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::its_lane, v); } };
template <int N> struct its_lane { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::its_query_shard, v); } };
template <int N> struct its_query_shard { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::its_key_shard, v); } };
template <int N> struct its_key_shard { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::usable_in_step, v); } };
template <int N> struct usable_in_step { static constexpr void at(const verdict& v) { print_from<later<(N < 65)>>(number::end, v); } };
// clang-format on

/// Calls a function for each number that belongs to the fault, from `n` on, one in the other; in the innermost, fails.
template <class Later>
constexpr void print_from(number n, const verdict& v) {
  while (!belongs(n, v)) n = static_cast<number>(static_cast<int>(n) + 1);
  const bool is_pair = v.found == fault::pair_missing || v.found == fault::pair_computed_twice;
  switch (n) {
    case number::world:
      return print<world, Later>(v.world, v);
    case number::inner_world:
      return print<inner_world, Later>(v.refused_part.world, v);
    case number::rank:
      return print<rank, Later>(v.rank, v);
    case number::step:
      return print<step, Later>(v.step, v);
    case number::lane:
      return print<lane, Later>(v.found == fault::lane_does_not_exist ? v.peer : v.lane, v);
    case number::query_shard:
      return print<query_shard, Later>(v.block.shard, v);
    case number::key_shard:
      return print<key_shard, Later>(is_pair ? v.peer : v.block.shard, v);
    case number::peer:
      return print<peer, Later>(v.peer, v);
    case number::other_rank:
      return print<other_rank, Later>(v.clue.rank, v);
    case number::its_step:
      return print<its_step, Later>(v.clue.step, v);
    case number::its_lane:
      return print<its_lane, Later>(v.clue.lane, v);
    case number::its_query_shard:
      return print<its_query_shard, Later>(v.clue.block.shard, v);
    case number::its_key_shard:
      return print<its_key_shard, Later>(v.clue.block.shard, v);
    case number::usable_in_step:
      return print<usable_in_step, Later>(v.clue.until, v);
    case number::end:
      v.any_world ? unless_the_topology_refuses_this_world_by_unsupported_reason(v.world, v) : fail(v);
  }
}

}  // namespace orrery::invalid_schedule

namespace orrery {

template <std::same_as<bool> Bool>
constexpr verdict::operator Bool() const {
  if (!ok() && std::is_constant_evaluated()) {
    invalid_schedule::print_from<invalid_schedule::later<std::same_as<Bool, bool>>>(invalid_schedule::number::world,
                                                                                    *this);
  }
  return ok();
}

}  // namespace orrery
