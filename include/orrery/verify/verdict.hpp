// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <ostream>
#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/counted.hpp"
#include "orrery/schedule/detail/describe_block.hpp"
#include "orrery/topology/detail/refusing_part.hpp"
#include "orrery/verify/detail/fault_clue.hpp"

namespace orrery {

/// What can be wrong with a schedule.
enum class fault : std::uint8_t {
  none,
  world_refused,       ///< the topology does not admit this world
  program_of_another,  ///< the program says that it is another rank's, or for another world, pass, slicing or number of
                       ///< chunks
  lane_does_not_exist,     ///< lanes are numbered from 0 to 15
  tensor_alone,            ///< an exchange of single tensors of its blocks: a schedule moves whole blocks
  peer_outside_world,      ///< an exchange with a rank that does not exist, or with oneself
  block_outside_world,     ///< a shard, chunk or slice that does not exist
  exchange_takes_no_step,  ///< an exchange that must be complete in the step that posts it, or never is
  send_unmatched,          ///< sent, but the peer does not receive it
  receive_unmatched,       ///< awaited, but the peer does not send it
  blocks_disagree,         ///< the two ends of a message name different blocks
  operand_missing,         ///< used, or sent on, by a rank that does not have it (yet)
  slot_missing,            ///< a block is received, or a partial begun, in no slot of the program
  slot_overwritten,        ///< the slot holds something else by now, or is written while it is still being read
  sides_confused,          ///< a tile with blocks of the wrong side, or of several slices
  pair_computed_twice,     ///< a (query chunk, key chunk, slice) computed for the second time
  pair_missing,            ///< a visible (query chunk, key chunk, slice) that no rank computes
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
  const char* reason = nullptr;  ///< why the world was refused; of a missing pair: which pairs the topology leaves out
  int lane = 0;                  ///< of a message: its lane on this rank
  orrery::schedule::payload payload = orrery::schedule::payload::operand;  ///< of a message
  detail::fault_clue clue{};                                               ///< the exchange that explains the fault
  detail::refusing_part refused_part{};  ///< the part of the topology that refuses its world
  bool any_world = false;                ///< the topology has no `unsupported_reason`, and its ranks are not all alike
  int chunks = 1;                        ///< of each shard
  int peer_chunk = 0;                    ///< of a pair: which chunk of the key shard

  [[nodiscard]] constexpr bool ok() const noexcept { return found == fault::none; }
  /// A template, so that a program which converts none need not compile what follows for each number of a rank.
  template <std::same_as<bool> Bool>
  explicit constexpr operator Bool() const;

  /// One message: what is wrong, where, and what to do about it.
  [[nodiscard]] std::string message() const;
  friend std::ostream& operator<<(std::ostream& out, const verdict& v) { return out << v.message(); }
};

namespace detail {

/// The parts of a verdict's message.
struct verdict_words {
  const verdict& v;

  [[nodiscard]] static std::string number(int n) { return std::to_string(n); }
  [[nodiscard]] std::string name_of_payload(const schedule::block& b, schedule::payload p) const {
    return (p == schedule::payload::partial ? "the partial of " : "") + describe_block(b, v.chunks);
  }
  [[nodiscard]] std::string block() const { return describe_block(v.block, v.chunks); }
  /// Of a pair.
  [[nodiscard]] std::string key() const {
    return describe_block({schedule::side::key, static_cast<std::uint16_t>(v.peer_chunk), v.peer, 0}, v.chunks);
  }
  [[nodiscard]] std::string message() const { return name_of_payload(v.block, v.payload); }
  [[nodiscard]] std::string where() const { return "rank " + number(v.rank) + ", step " + number(v.step) + ": "; }
  [[nodiscard]] std::string clue_block() const { return name_of_payload(v.clue.block, v.clue.payload); }
  [[nodiscard]] std::string clue_place() const {
    return " (in its step " + number(v.clue.step) + ", lane " + number(v.clue.lane) + ")";
  }

  /// The end of a message about one rank, if the world may be what is wrong.
  [[nodiscard]] std::string or_world() const {
    if (!v.any_world || v.found == fault::peer_outside_world) return "";
    return "; or, if the topology cannot have " + counted_ranks(v.world) +
           ", give it unsupported_reason(world), which says so";
  }

  [[nodiscard]] std::string operand_missing() const {
    const fault_clue& c = v.clue;
    const std::string used = where() + block() + " is used, but it ";
    if (c.found == fault_clue::kind::in_flight) {
      const std::string use = "; use it from step " + number(c.until) + " on, or ";
      const std::string from = " from rank " + number(c.rank) + " in lane " + number(c.lane);
      if (c.step >= v.step) {
        return used + "is received" + (c.step > v.step ? " only" : "") + " in step " + number(c.step) + from +
               ", and arrives by step " + number(c.until) + use + "receive it in an earlier step";
      }
      return used + "is in flight until step " + number(c.until) + ": it is received in step " + number(c.step) + from +
             use + "wait for it by letting its exchange take " + number(v.step - c.step) +
             (v.step - c.step == 1 ? " step" : " steps at most");
    }
    if (c.found == fault_clue::kind::not_received) {
      return used + "is not received: rank " + number(c.rank) + " sends it to this rank" + clue_place() +
             "; receive it in that lane and order";
    }
    return used + "is not on this rank, and no rank sends it to this one; receive it in an earlier step, from a rank " +
           "that has it";
  }

  [[nodiscard]] std::string unmatched() const {
    const bool sent = v.found == fault::send_unmatched;
    const fault_clue& c = v.clue;
    const std::string peer = "rank " + number(v.peer);
    const std::string start =
        where() + message() + (sent ? " is sent to " : " is awaited from ") + peer + " in lane " + number(v.lane);
    const std::string does = sent ? "receives" : "sends";
    const std::string does_not = sent ? ", which does not receive it" : ", which does not send it";
    switch (c.found) {
      case fault_clue::kind::other_lane:
        return start + ", which " + does + " it in lane " + number(c.lane) + " (in its step " + number(c.step) +
               "); name one lane at both ends";
      case fault_clue::kind::other_peer:
        return start + ", which " + (sent ? "awaits it from rank " : "sends it to rank ") + number(c.rank) +
               " instead" + clue_place() + "; let the two ends name each other";
      case fault_clue::kind::other_partner:
        return start + does_not + ", while rank " + number(c.rank) +
               (sent ? " awaits it from this rank" : " sends it to this rank") + clue_place() +
               "; let the two ends name each other";
      case fault_clue::kind::message_too_few:
        return start + does_not + ": it " + (sent ? "expects " : "sends ") + clue_block() + " instead" + clue_place() +
               "; let it " + (sent ? "receive" : "send") + " this one before, in the same lane";
      default:
        return start + does_not + "; let it, in the same lane and order";
    }
  }

  [[nodiscard]] std::string blocks_disagree() const {
    const fault_clue& c = v.clue;
    const std::string start = where() + message() + " is expected from rank " + number(v.peer) + " in lane " +
                              number(v.lane) + ", which sends ";
    const std::string end = clue_place() + "; name the same blocks in the same order at both ends";
    switch (c.found) {
      case fault_clue::kind::other_payload:
        return start + (c.payload == schedule::payload::partial ? "its partial" : "it as an operand") + end;
      case fault_clue::kind::other_count:
        return start + number(c.count) + (c.count == 1 ? " block" : " blocks") + " instead of " + number(c.expected) +
               end;
      case fault_clue::kind::other_block:
        return start + clue_block() + " instead" + end;
      default:
        return start + "something else; name the same blocks in the same order at both ends";
    }
  }

  [[nodiscard]] std::string sentence() const {
    const std::string what = block();
    const std::string at = where();
    switch (v.found) {
      case fault::none:
        return "the schedule is right for " + counted_ranks(v.world);
      case fault::world_refused:
        return "a world of " + counted_ranks(v.world) + " is refused: the topology " + v.refused_part.text() +
               (v.reason != nullptr ? v.reason : "does not admit it");
      case fault::program_of_another:
        return "the program of rank " + number(v.rank) +
               " is for another rank, world, pass or number of slices or chunks; pass on to the builder what "
               "program(...) was given";
      case fault::lane_does_not_exist:
        return at + "lane " + number(v.peer) + " does not exist; lanes are numbered from 0 to 15";
      case fault::tensor_alone:
        return at + "an exchange carries tensor " + number(v.peer) +
               " of its blocks alone, but schedules move whole blocks; leave exchange::tensor at every_tensor, and ask "
               "the operator for operand_messages::per_tensor";
      case fault::peer_outside_world:
        if (v.any_world) {
          return "a world of " + counted_ranks(v.world) + " does not suit the topology, or a peer is wrong: rank " +
                 number(v.rank) + ", step " + number(v.step) + ", names peer " + number(v.peer) +
                 ", but peers are 0 to " + number(v.world - 1) +
                 "; refuse the world with unsupported_reason(world), or correct the peer";
        }
        return at + "an exchange names peer " + number(v.peer) + ", but peers are 0 to " + number(v.world - 1) +
               " and never the rank itself";
      case fault::block_outside_world:
        return at + what + " does not exist; shards are 0 to " + number(v.world - 1) +
               (v.chunks == 1 ? "" : ", chunks 0 to " + number(v.chunks - 1)) + " and slices below slices(world)";
      case fault::exchange_takes_no_step:
        return at + "the exchange with rank " + number(v.peer) +
               " must be complete in a later step than the one which posts it, and before the program ends";
      case fault::send_unmatched:
      case fault::receive_unmatched:
        return unmatched();
      case fault::blocks_disagree:
        return blocks_disagree();
      case fault::operand_missing:
        return operand_missing();
      case fault::slot_missing:
        return at + what +
               " is received, or its partial begun, in a slot that does not exist; call finish after changing a "
               "program";
      case fault::slot_overwritten:
        return at + "the slot of " + what +
               " is written while the block is still needed; free it later, or take another slot";
      case fault::sides_confused:
        return at + what + " does not belong into this tile, which is query blocks times key blocks of one slice";
      case fault::pair_computed_twice:
        return at + what + " meets " + key() + " for the second time; leave one of the two tiles out";
      case fault::pair_missing:
        if (v.reason != nullptr) return what + " never meets " + key() + ": the topology " + v.reason;
        return what + " never meets " + key() + "; let the two interact, for example on rank " + number(v.rank) +
               ", which has the queries";
      case fault::partial_not_held:
        return at + "the partial of " + what +
               " is sent, but this rank does not hold it (any more); partials are moved, never copied";
      case fault::partial_leaves_home:
        return at + "the partial of " + what + " is sent away from its home; leave it there";
      case fault::partial_stranded:
        return "the partial of " + what + " ends on rank " + number(v.rank) + "; send it on to rank " +
               number(v.block.shard) + ", its home, as payload::partial";
      case fault::deadlock:
        return at + "the rank waits for rank " + number(v.peer) +
               ", which, directly or through others, waits for it; post the exchange earlier or let it complete later";
    }
    return "unknown fault";
  }
};

}  // namespace detail

inline std::string verdict::message() const {
  const detail::verdict_words words{*this};
  return words.sentence() + words.or_world();
}

}  // namespace orrery

#include "orrery/verify/detail/invalid_schedule.hpp"  // IWYU pragma: keep
