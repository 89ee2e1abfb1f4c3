// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/detail/peer_text.hpp"
#include "orrery/transport/transport.hpp"

/// The order in which a rank issues its exchanges to NCCL, such that NCCL cannot deadlock.
///
/// Problem. A message of a schedule begins when both its ends are posted. A message of NCCL begins when its whole group
/// has begun on both ranks, and a group begins when all earlier groups on the stream of its communicator have ended. So
/// the order of the program alone can deadlock NCCL, even if the schedule is proven. Example: three ranks exchange in
/// pairs, each first with the next rank and one step later with the previous rank; each group waits for another one in
/// a cycle. In addition, the first message between two ranks may block the host in the call until the other host has
/// reached it, on any communicator.
///
/// Solution. Every message gets a logical time, from a clock that counts steps and waits:
///
///     time(message) = max over its two ends: clock(rank, step in which the end is posted)
///     clock(rank, step) = max(clock(rank, step - 1) + 1, 1 + max over what is awaited before this step: time)
///
/// If no rank is ahead of its peers, the clock is the step, and the time of a message is the step of its later end.
/// Messages of one lane and one time are one group. Every rank issues its groups in the order of their times, across
/// all lanes. An end whose counterpart is posted later may be held back, but never beyond the step before which it must
/// be complete. Each rank computes this for the whole world, from the messages of all ranks.
///
/// Proof that it ends. The clock of a proven schedule exists: each rank reaches each step by messages of earlier times.
/// Assume that all groups of the world before (time, lane) are done. Then the ends of this group are issued on all
/// their ranks, since a host blocks in a call only for groups before this one. They begin: the groups before them on
/// their stream come before in this order. What the compute stream has awaited before the step in which they are issued
/// has an earlier time, since a group of time t is issued in a step whose clock is at most t. All their counterparts
/// are in groups of the same lane and time, to which the same applies. So they meet, and end. The k-th message of two
/// ranks in a lane is issued before the (k+1)-th on both, since times increase with steps.
///
/// Groups of different lanes that are adjacent on a rank and issued together may be one call of NCCL, which returns
/// when all of them are enqueued. Hosts do not deadlock then either. Consider the first group that is not enqueued on
/// all its ranks: each of these has entered a call that contains it, or will. A call that contains groups before and
/// after it contains it, too, since they are adjacent; and a call that contains only groups before it returns.
///
/// Inside a call, NCCL orders communicators by a hash, not by the order of calls, and the calls of two ranks need not
/// hold the same lanes. That does not matter: the argument orders groups of one lane only, and kernels of different
/// lanes are on different streams. It would if the device ran these one after the other: see `world`.
///
/// Cost: a message does not start later than its later end, if no rank is ahead. When a plan is made, every rank reads
/// the messages of the whole world once.
namespace orrery::nccl {

/// One end of a message, as its rank reports it to the others.
struct message_end {
  bool sends;
  int peer;
  int lane;
  int exchange;  ///< index in the rank's program
  int posted;    ///< the step in which it is posted
  int complete_before;
  int native;         ///< index of the rank's native call that it belongs to; -1: none
  std::string sizes;  ///< sizes of its pieces
};

/// A marked collective that could be one call of NCCL, as far as its rank knows.
struct native_call {
  schedule::collective_kind kind;
  int first_rank;
  int ranks;
  int rank_stride;
  int lane;
  int number;  ///< counts native calls that are otherwise equal

  auto operator<=>(const native_call&) const = default;
  [[nodiscard]] bool has(int rank) const {
    const int index = rank - first_rank;
    return index >= 0 && index % rank_stride == 0 && index / rank_stride < ranks;
  }
};

/// The messages of one rank, as it reports them to the others.
struct rank_messages {
  int steps = 0;
  std::vector<native_call> natives;
  std::vector<message_end> ends;  ///< in the order of the exchanges
};

/// Writes the messages as text, for `parse`.
[[nodiscard]] inline std::string serialize(const rank_messages& local) {
  std::ostringstream text;
  text << local.steps << '\n';
  for (const native_call& native : local.natives) {
    text << "n " << static_cast<int>(native.kind) << ' ' << native.first_rank << ' ' << native.ranks << ' '
         << native.rank_stride << ' ' << native.lane << ' ' << native.number << '\n';
  }
  for (const message_end& end : local.ends) {
    text << (end.sends ? "s " : "r ") << end.peer << ' ' << end.lane << ' ' << end.exchange << ' ' << end.posted << ' '
         << end.complete_before << ' ' << end.native << ' ' << end.sizes << '\n';
  }
  return text.str();
}
/// Parses the text that rank `from` of `ranks` has made by `serialize`. Throws `transport_error` for anything else.
[[nodiscard]] inline rank_messages parse(const std::string& text, int from, int ranks) {
  constexpr int most = (std::numeric_limits<int>::max)();
  constexpr int most_steps = 1 << 20;
  rank_messages messages_of_rank;
  detail::peer_text read{text};
  read.number(messages_of_rank.steps, 0, most_steps).skip("\n");
  while (read.good() && !read.ended()) {
    if (read.at('n')) {
      int kind = 0;
      native_call native{};
      read.skip("n ").number(kind, 0, static_cast<int>(schedule::collective_kind::reduce_scatter)).skip(" ");
      read.number(native.first_rank, 0, ranks - 1).skip(" ").number(native.ranks, 1, ranks).skip(" ");
      read.number(native.rank_stride, 1, most).skip(" ").number(native.lane, 0, most).skip(" ");
      read.number(native.number, 0, most).skip("\n");
      native.kind = static_cast<schedule::collective_kind>(kind);
      messages_of_rank.natives.push_back(native);
    } else {
      message_end end{};
      end.sends = read.at('s');
      std::string_view sizes;
      read.skip(end.sends ? "s " : "r ").number(end.peer, 0, ranks - 1).skip(" ").number(end.lane, 0, most).skip(" ");
      read.number(end.exchange, 0, most).skip(" ").number(end.posted, 0, most_steps).skip(" ");
      read.number(end.complete_before, -most, most).skip(" ");
      read.number(end.native, -1, static_cast<int>(messages_of_rank.natives.size()) - 1).skip(" ").until('\n', sizes);
      end.sizes = sizes;
      messages_of_rank.ends.push_back(std::move(end));
    }
  }
  if (read.ended()) return messages_of_rank;
  throw transport_error{
      "orrery: rank " + std::to_string(from) +
      " gives a text that is not a list of a plan's messages, so it makes another collective call than "
      "open, which the construction of an operator ends with; let all ranks make the same calls, in "
      "one order"};
}

/// One group of sends and receives, or one native collective.
struct ordered_call {
  int lane = 0;
  int native = -1;  ///< index of the rank's native call; -1: none
  std::vector<int> sends;
  std::vector<int> receives;  ///< in the order of the program
  int after = 0;              ///< issued when this exchange is posted
};

/// The calls of one rank in issue order, and the lanes and native calls of the whole world, for which communicators are
/// needed.
struct call_order {
  std::vector<ordered_call> calls;
  std::set<int> lanes;
  std::set<native_call> natives;
};

/// Computes the issue order from the messages of all ranks.
class world_messages {
 public:
  /// Throws the same `transport_error` on all ranks if a rank sends what its peer does not expect.
  explicit world_messages(std::vector<rank_messages> messages_of_rank) : of_ranks_{std::move(messages_of_rank)} {
    match();
    find_natives();
  }

  /// Returns the order of one rank. Throws `transport_error` if a rank would wait for ever, which programs that are not
  /// proven may do.
  [[nodiscard]] call_order order(int rank) {
    if (!run_clock() && !natives_.empty()) {
      natives_.clear();  // a collective waits for all its members, but messages wait only for each other
      run_clock();
    }
    if (!stuck_.empty()) throw transport_error{stuck_};
    return order_of(rank);
  }

 private:
  using logical_time = std::int64_t;
  /// A message or a native call, which begins and ends as one.
  struct event {
    std::vector<std::pair<int, int>> posts;  // rank and step
    logical_time at = -1;                    // -1: unknown yet
  };
  /// The queue that a call is issued to: a lane, or the communicator of a native call.
  using issue_queue = std::pair<int, native_call>;

  [[nodiscard]] const message_end& end_of(std::pair<int, std::size_t> place) const {
    return of_ranks_[static_cast<std::size_t>(place.first)].ends[place.second];
  }

  /// Matches ends: the k-th message that a rank sends to another in a lane is the k-th that the other expects.
  void match() {
    std::map<std::tuple<int, int, int>, std::vector<std::size_t>> sent, expected;
    for (int rank = 0; rank < static_cast<int>(of_ranks_.size()); ++rank) {
      const auto& ends = of_ranks_[static_cast<std::size_t>(rank)].ends;
      counterpart_.emplace_back(ends.size());
      for (std::size_t i = 0; i < ends.size(); ++i) {
        const message_end& end = ends[i];
        (end.sends ? sent[{rank, end.peer, end.lane}] : expected[{end.peer, rank, end.lane}]).push_back(i);
      }
    }
    const auto fit = [&](const std::tuple<int, int, int>& pair) {
      const auto [from, to, lane] = pair;
      const auto& outgoing = sent[pair];
      const auto& incoming = expected[pair];
      bool same = outgoing.size() == incoming.size();
      for (std::size_t k = 0; same && k < outgoing.size(); ++k) {
        same = end_of({from, outgoing[k]}).sizes == end_of({to, incoming[k]}).sizes;
        counterpart_[static_cast<std::size_t>(from)][outgoing[k]] = {to, incoming[k]};
        counterpart_[static_cast<std::size_t>(to)][incoming[k]] = {from, outgoing[k]};
      }
      if (same) return;
      throw transport_error{"orrery: rank " + std::to_string(from) + " sends to rank " + std::to_string(to) +
                            " other messages than that expects: their number, their lanes or their sizes differ" +
                            detail::world_is_usable};
    };
    std::set<std::tuple<int, int, int>> pairs;
    for (const auto& [pair, ends] : sent) pairs.insert(pair);
    for (const auto& [pair, ends] : expected) pairs.insert(pair);
    for (const auto& pair : pairs) fit(pair);
  }

  /// Finds the calls that all their members name, whose messages are all among the members, and whose groups have no
  /// rank in common with other groups of the same number and stride, with which they share communicators.
  void find_natives() {
    std::map<native_call, std::set<int>> named_by;
    for (int rank = 0; rank < static_cast<int>(of_ranks_.size()); ++rank) {
      for (const native_call& native : of_ranks_[static_cast<std::size_t>(rank)].natives) named_by[native].insert(rank);
    }
    std::map<std::pair<int, int>, std::map<int, int>> first_of;  // by ranks and stride: each rank's group
    std::set<std::pair<int, int>> overlapping;
    for (const auto& [native, ranks] : named_by) {
      bool whole = static_cast<int>(ranks.size()) == native.ranks;
      for (const int rank : ranks) {
        whole = whole && native.has(rank);
        const auto [entry, fresh] = first_of[{native.ranks, native.rank_stride}].emplace(rank, native.first_rank);
        if (!fresh && entry->second != native.first_rank) overlapping.insert({native.ranks, native.rank_stride});
      }
      if (whole) natives_.insert(native);
    }
    for (int rank = 0; rank < static_cast<int>(of_ranks_.size()); ++rank) {
      const rank_messages& messages = of_ranks_[static_cast<std::size_t>(rank)];
      for (std::size_t i = 0; i < messages.ends.size(); ++i) {
        if (messages.ends[i].native < 0) continue;
        const native_call& native = messages.natives[static_cast<std::size_t>(messages.ends[i].native)];
        const auto other = counterpart_[static_cast<std::size_t>(rank)][i];
        const int theirs = end_of(other).native;
        if (theirs < 0 ||
            of_ranks_[static_cast<std::size_t>(other.first)].natives[static_cast<std::size_t>(theirs)] != native)
          natives_.erase(native);
      }
    }
    std::erase_if(natives_, [&](const native_call& native) {
      return overlapping.count({native.ranks, native.rank_stride}) > 0;
    });
  }

  [[nodiscard]] int native_of(int rank, std::size_t end) const {
    const rank_messages& messages = of_ranks_[static_cast<std::size_t>(rank)];
    const int native = messages.ends[end].native;
    return native >= 0 && natives_.count(messages.natives[static_cast<std::size_t>(native)]) > 0 ? native : -1;
  }

  /// Computes the logical time of every message. Returns false if a rank would not reach the end of its program.
  bool run_clock() {
    stuck_.clear();
    events_.clear();
    event_of_.assign(of_ranks_.size(), {});
    std::map<native_call, std::size_t> of_native;
    // By rank and step: the events that must be complete before the step.
    std::vector<std::vector<std::vector<std::size_t>>> awaited(of_ranks_.size());
    for (std::size_t rank = 0; rank < of_ranks_.size(); ++rank) {
      event_of_[rank].assign(of_ranks_[rank].ends.size(), 0);
      awaited[rank].resize(static_cast<std::size_t>(of_ranks_[rank].steps) + 1);
    }
    for (std::size_t rank = 0; rank < of_ranks_.size(); ++rank) {
      for (std::size_t i = 0; i < of_ranks_[rank].ends.size(); ++i) {
        const message_end& end = of_ranks_[rank].ends[i];
        const int native = native_of(static_cast<int>(rank), i);
        std::size_t number = events_.size();
        if (native >= 0) {
          const native_call& call = of_ranks_[rank].natives[static_cast<std::size_t>(native)];
          number = of_native.emplace(call, events_.size()).first->second;
        } else if (!end.sends) {
          continue;  // counted at its sender
        }
        if (number == events_.size()) events_.emplace_back();
        event_of_[rank][i] = number;
        const auto [other, index] = counterpart_[rank][i];
        event_of_[static_cast<std::size_t>(other)][index] = number;
        events_[number].posts.emplace_back(static_cast<int>(rank), end.posted);
        events_[number].posts.emplace_back(other, end_of({other, index}).posted);
      }
    }
    for (std::size_t rank = 0; rank < of_ranks_.size(); ++rank) {
      for (std::size_t i = 0; i < of_ranks_[rank].ends.size(); ++i) {
        const auto before = static_cast<std::size_t>((std::max)(0, of_ranks_[rank].ends[i].complete_before));
        awaited[rank][(std::min)(before, awaited[rank].size() - 1)].push_back(event_of_[rank][i]);
      }
    }

    std::vector<std::vector<logical_time>> clocks(
        of_ranks_.size());  // the clock of each step that each rank has reached
    const auto known = [&](event& begun) {
      if (begun.at >= 0) return true;
      logical_time latest = 0;
      for (const auto& [rank, step] : begun.posts) {
        const auto& clock = clocks[static_cast<std::size_t>(rank)];
        if (clock.size() <= static_cast<std::size_t>(step)) return false;
        latest = (std::max)(latest, clock[static_cast<std::size_t>(step)]);
      }
      begun.at = latest;
      return true;
    };
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t rank = 0; rank < of_ranks_.size(); ++rank) {
        auto& clock = clocks[rank];
        while (clock.size() < awaited[rank].size()) {
          logical_time now = clock.empty() ? 0 : clock.back() + 1;
          bool free = true;
          for (const std::size_t awaited_event : awaited[rank][clock.size()]) {
            free = free && known(events_[awaited_event]);
            if (free) now = (std::max)(now, events_[awaited_event].at + 1);
          }
          if (!free) break;
          clock.push_back(now);
          moved = true;
        }
      }
    }
    for (std::size_t rank = 0; stuck_.empty() && rank < of_ranks_.size(); ++rank) {
      if (clocks[rank].size() == awaited[rank].size()) continue;
      stuck_ = "orrery: rank " + std::to_string(rank) + " would wait for ever in step " +
               std::to_string(clocks[rank].size()) +
               ": the programs are not proven; let orrery::verify name what is wrong" + detail::world_is_usable;
    }
    return stuck_.empty();
  }

  [[nodiscard]] call_order order_of(int rank) const {
    // Calls with the same time are ordered alike on all ranks: by the latest position that they have on any rank.
    std::map<std::pair<logical_time, issue_queue>, int> position;
    call_order all;
    all.natives = natives_;
    std::map<std::pair<logical_time, issue_queue>, ordered_call> local;
    for (int of = 0; of < static_cast<int>(of_ranks_.size()); ++of) {
      const rank_messages& messages_of_rank = of_ranks_[static_cast<std::size_t>(of)];
      std::map<std::pair<logical_time, issue_queue>, int> first;
      for (std::size_t i = 0; i < messages_of_rank.ends.size(); ++i) {
        const message_end& end = messages_of_rank.ends[i];
        const int native = native_of(of, i);
        const issue_queue on = native < 0 ? issue_queue{end.lane, {}}
                                          : issue_queue{-1, messages_of_rank.natives[static_cast<std::size_t>(native)]};
        if (native < 0) all.lanes.insert(end.lane);
        const std::pair key{events_[event_of_[static_cast<std::size_t>(of)][i]].at, on};
        first.emplace(key, end.exchange);
        if (of != rank) continue;
        ordered_call& call = local[key];
        call.lane = end.lane;
        call.native = native;
        (end.sends ? call.sends : call.receives).push_back(end.exchange);
        call.after = (std::max)(call.after, end.exchange);
      }
      for (const auto& [key, exchange] : first) {
        int& latest = position.emplace(key, exchange).first->second;
        latest = (std::max)(latest, exchange);
      }
    }
    std::vector<std::tuple<logical_time, int, issue_queue>> sorted;
    for (const auto& [key, call] : local) sorted.emplace_back(key.first, position.at(key), key.second);
    std::sort(sorted.begin(), sorted.end());
    int after = 0;
    for (const auto& [at, place, on] : sorted) {
      ordered_call& call = all.calls.emplace_back(std::move(local[{at, on}]));
      call.after = after = (std::max)(after, call.after);
    }
    return all;
  }

  std::vector<rank_messages> of_ranks_;
  std::vector<std::vector<std::pair<int, std::size_t>>>
      counterpart_;  // by rank and end: the rank and index of the other end
  std::set<native_call> natives_;
  std::vector<event> events_;
  std::vector<std::vector<std::size_t>> event_of_;  // by rank and end
  std::string stuck_;
};

}  // namespace orrery::nccl
