// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <mpi.h>

#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/mpi/communicator.hpp"
#include "orrery/transport/mpi/message.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::mpi {

/// A marked collective of a program that could be one call of MPI, as far as one rank knows: all its exchanges are of
/// one step and one lane, with members of the group, and with at most one message each way for each member.
struct candidate {
  schedule::range exchanges;
  schedule::rank_group members;
  int lane = 0;
  int step = 0;
  bool gathers = false;  ///< true: MPI_Iallgatherv can do it; false: it needs MPI_Ialltoallw

  /// A text that is the same on all members for the same collective.
  [[nodiscard]] std::string name() const {
    std::string text;
    for (const int number : {members.first, members.stride, members.count, lane, step}) {
      text += std::to_string(number) + ",";
    }
    return text;
  }
};

/// True if MPI_Iallgatherv can do this all_gather: if each rank sends the same contiguous message to all, and all
/// messages are within reach of an int offset from each other.
[[nodiscard]] inline bool gathers_in_one(const schedule::collective& c, const schedule::program& p,
                                         const std::vector<exchange_pieces>& pieces) {
  if (c.kind != schedule::collective_kind::all_gather || c.exchanges.count != c.ranks - 1) return false;
  const std::byte* lowest = nullptr;
  const std::byte* highest = nullptr;
  const std::vector<piece>& first = pieces[static_cast<std::size_t>(c.exchanges.first)].sent;
  for (const int e : c.exchanges) {
    const exchange_pieces& of_exchange = pieces[static_cast<std::size_t>(e)];
    if (p.exchanges[e].to == schedule::no_rank || p.exchanges[e].from == schedule::no_rank) return false;
    for (const std::vector<piece>* message : {&of_exchange.sent, &of_exchange.received}) {
      if (message->size() != 1) return false;
      const piece& part = message->front();
      if (message == &of_exchange.sent && (part.data != first[0].data || part.bytes != first[0].bytes)) return false;
      if (part.bytes == 0) continue;
      if (part.bytes > INT_MAX) return false;
      if (lowest == nullptr || std::less{}(part.data, lowest)) lowest = part.data;
      if (highest == nullptr || std::less{}(highest, part.data)) highest = part.data;
    }
  }
  return highest - lowest <= INT_MAX;
}

/// The marked collectives of a program that could be native. Two with the same group, lane and step cannot be told
/// apart, so neither is a candidate.
[[nodiscard]] inline std::vector<candidate> candidates_of(const schedule::program& p,
                                                          const std::vector<exchange_pieces>& pieces) {
  std::vector<candidate> found;
  for (const schedule::collective& c : p.collectives) {
    const schedule::rank_group members{c.first_rank, c.ranks, c.rank_stride};
    const schedule::exchange& first = p.exchanges_of(c)[0];
    std::vector<int> met_to(static_cast<std::size_t>(c.ranks), 0);
    std::vector<int> met_from = met_to;
    const auto meets = [&](std::vector<int>& met, int peer) {
      if (peer == schedule::no_rank) return true;
      const int index = members.index_of(peer);
      return index >= 0 && index < members.count && members.member(index) == peer &&
             met[static_cast<std::size_t>(index)]++ == 0;
    };
    bool fits = c.rank_stride > 0;
    for (const schedule::exchange& x : p.exchanges_of(c)) {
      fits = fits && x.posted == first.posted && x.lane == first.lane && meets(met_to, x.to) && meets(met_from, x.from);
    }
    if (fits) found.push_back({c.exchanges, members, first.lane, first.posted, gathers_in_one(c, p, pieces)});
  }
  std::vector<candidate> unique;
  for (const candidate& c : found) {
    const auto has_same_name = [&](const candidate& other) { return other.name() == c.name(); };
    if (std::count_if(found.begin(), found.end(), has_same_name) == 1) unique.push_back(c);
  }
  return unique;
}

/// One collective of a program as one non-blocking call of MPI, with the messages of its exchanges and no others.
/// Blocks are sent from and received to their places, and partials that arrive are merged by the executor as usual. The
/// arguments of the call are kept until it has completed.
class native_collective {
 public:
  /// The group must have its communicator (see `communicator::make_groups`), and all its members must have agreed on
  /// the call.
  native_collective(communicator& world, const candidate& candidate, const schedule::program& p,
                    const std::vector<exchange_pieces>& pieces)
      : exchanges_{candidate.exchanges},
        members_{candidate.members},
        step_{candidate.step},
        lane_{candidate.lane},
        gathers_{candidate.gathers},
        group_{world.of_group(candidate.members, candidate.lane)} {
    const auto ranks = static_cast<std::size_t>(candidate.members.count);
    const auto index_of = [&](int peer) { return static_cast<std::size_t>(candidate.members.index_of(peer)); };
    arguments& all = *arguments_;
    for (side_of_call* side : {&all.sent, &all.received}) {
      side->counts.assign(ranks, 0);
      side->offsets.assign(ranks, 0);
      side->types.assign(ranks, MPI_BYTE);
    }
    if (gathers_) {
      const piece& local = pieces[static_cast<std::size_t>(exchanges_.first)].sent.front();
      std::vector<std::pair<std::size_t, piece>> blocks{{index_of(p.rank), local}};
      for (const int e : exchanges_) {
        blocks.emplace_back(index_of(p.exchanges[e].from), pieces[static_cast<std::size_t>(e)].received.front());
      }
      for (const auto& [rank, block] : blocks) {
        if (block.bytes > 0 && (base_ == nullptr || std::less{}(block.data, base_))) base_ = block.data;
      }
      for (const auto& [rank, block] : blocks) {
        if (block.bytes == 0) continue;
        all.received.counts[rank] = static_cast<int>(block.bytes);
        all.received.offsets[rank] = static_cast<int>(block.data - base_);
      }
      return;
    }
    const auto add = [&](side_of_call& side, int peer, const std::vector<piece>& message) {
      const message_type& type =
          *all.messages.emplace_back(std::make_unique<message_type>(world, message, address_in::type));
      side.counts[index_of(peer)] = type.count();
      side.types[index_of(peer)] = type.type();
    };
    for (const int e : exchanges_) {
      const schedule::exchange& x = p.exchanges[e];
      if (x.to != schedule::no_rank) add(all.sent, x.to, pieces[static_cast<std::size_t>(e)].sent);
      if (x.from != schedule::no_rank) add(all.received, x.from, pieces[static_cast<std::size_t>(e)].received);
    }
  }

  [[nodiscard]] const schedule::range& exchanges() const noexcept { return exchanges_; }
  [[nodiscard]] const schedule::rank_group& members() const noexcept { return members_; }
  /// A number that is the same on all members for this call, and almost surely no other call's. Plans are identified by
  /// their first tag.
  [[nodiscard]] std::uint64_t number_of_call(int plan, std::uint64_t call_of_plan) const noexcept {
    std::uint64_t number = call_of_plan;
    for (const int part : {plan, step_, lane_, members_.first}) {
      number = number * 0x9e3779b97f4a7c15 + static_cast<std::uint64_t>(part) + 1;
    }
    return number |
           std::uint64_t{1} << 63;  // never equal to the number of a call of all ranks, which are counted from 1
  }
  [[nodiscard]] const char* call() const noexcept { return gathers_ ? "MPI_Iallgatherv" : "MPI_Ialltoallw"; }
  [[nodiscard]] MPI_Request& request() noexcept { return request_; }
  [[nodiscard]] bool in_flight() const noexcept { return request_ != MPI_REQUEST_NULL; }

  /// Starts the call. Returns the code of MPI.
  [[nodiscard]] int start() {
    const arguments& all = *arguments_;
    if (gathers_) {
      return MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, base_, all.received.counts.data(),
                             all.received.offsets.data(), MPI_BYTE, group_, &request_);
    }
    return MPI_Ialltoallw(MPI_BOTTOM, all.sent.counts.data(), all.sent.offsets.data(), all.sent.types.data(),
                          MPI_BOTTOM, all.received.counts.data(), all.received.offsets.data(),
                          all.received.types.data(), group_, &request_);
  }

  /// Retains the arguments for ever: the call will not be awaited, and MPI cannot cancel it.
  void give_up() noexcept { abandoned_buffers::all().retain_forever(std::move(arguments_)); }

 private:
  struct side_of_call {
    std::vector<int> counts;
    std::vector<int> offsets;
    std::vector<MPI_Datatype> types;
  };
  struct arguments {
    side_of_call sent;
    side_of_call received;
    std::vector<std::unique_ptr<message_type>> messages;
  };

  schedule::range exchanges_;
  schedule::rank_group members_;
  int step_;
  int lane_;
  bool gathers_;
  MPI_Comm group_;
  std::byte* base_ = nullptr;
  std::unique_ptr<arguments> arguments_ = std::make_unique<arguments>();
  MPI_Request request_ = MPI_REQUEST_NULL;
};

}  // namespace orrery::mpi
