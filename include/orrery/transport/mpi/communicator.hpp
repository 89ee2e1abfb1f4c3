// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <mpi.h>

#include "orrery/host/thread_team.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/mpi/control_messages.hpp"
#include "orrery/transport/mpi/wait_chain.hpp"
#include "orrery/transport/mpi/waiting_communicator.hpp"
#include "orrery/transport/mpi_options.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::mpi {

/// The communicator of a world, with the communicators of its groups, its collective calls and its tags. Shared by the
/// world and its channels.
class communicator final : public waiting_communicator {
 public:
  communicator(MPI_Comm parent, const options& options) : waiting_communicator{parent, options} {
    const presence here{*this, presence::on_entry::wait};
    void* bound = nullptr;
    int known = 0;
    check(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, static_cast<void*>(&bound), &known), "MPI_Comm_get_attr",
          nothing);
    // The number after the last tag is an int, too.
    last_tag_ = known != 0 ? (std::min)(*static_cast<const int*>(bound), INT_MAX - 1) : 32767;
  }
  ~communicator() {
    if (!may_free()) return;
    for (auto& [members, made] : groups_) {
      if (made != MPI_COMM_NULL) MPI_Comm_free(&made);
    }
  }

  /// True if this world can make communicators of some of its ranks. See `make_groups`.
  [[nodiscard]] bool makes_groups() const noexcept { return any_number_may_call(); }

  /// Ranks that have a communicator of their own for one lane.
  struct lane_group {
    schedule::rank_group members;
    int lane = 0;
  };

  /// Makes the communicators of `wanted` that do not exist yet. Collective: each rank passes the groups that it is a
  /// member of, in the order of (first, stride, count, lane).
  ///
  /// MPI makes a communicator of some of the ranks in a call that has no deadline and cannot be cancelled. So a
  /// separate thread makes it, under MPI_THREAD_MULTIPLE, while this one waits; at the deadline that thread is
  /// abandoned. It begins when all ranks are known to have what they need. So a rank without memory, for example,
  /// leaves no other rank in that call.
  void make_groups(const std::vector<lane_group>& wanted) {
    std::vector<lane_group> missing;
    for (const lane_group& group : wanted) {
      if (groups_.count(key_of(group)) != 0) continue;
      if (group.members.count < size()) {
        missing.push_back(group);
        continue;
      }
      const std::uint64_t number =
          next_collective_call();  // the same on all ranks, which come in the same order, since strides are positive
      groups_.emplace(
          key_of(group), duplicate(get(), [&] {
            return pending_wait{"for all ranks to make a communicator for collectives", {0, size()}, number};
          }));
    }
    const auto kept = retain<creation>();
    kept->from = get();
    MPI_Group all = MPI_GROUP_NULL;
    check(MPI_Comm_group(get(), &all), "MPI_Comm_group", nothing);
    for (const lane_group& group : missing) {
      std::vector<int> ranks;
      ranks.reserve(static_cast<std::size_t>(group.members.count));
      for (int i = 0; i < group.members.count; ++i) ranks.push_back(group.members.member(i));
      MPI_Group& members = kept->members.emplace_back(MPI_GROUP_NULL);
      check(MPI_Group_incl(all, group.members.count, ranks.data(), &members), "MPI_Group_incl", nothing);
      groups_.emplace(key_of(group), MPI_COMM_NULL);
    }
    MPI_Group_free(&all);
    kept->made.assign(missing.size(), MPI_COMM_NULL);
    std::thread maker;
    if (!missing.empty()) maker = std::thread{[work = kept.get()] { work->run(); }};
    try {
      MPI_Request request = MPI_REQUEST_NULL;
      check(MPI_Ibarrier(get(), &request), "MPI_Ibarrier", nothing);
      wait_for_all(request, "MPI_Ibarrier");
    } catch (...) {
      kept->begin(creation::state::cancelled);
      if (maker.joinable()) maker.join();
      throw;
    }
    if (!missing.empty()) {
      kept->begin(creation::state::begun);
      try {
        wait_until(
            [&] { return kept->now.load(std::memory_order_acquire) == creation::state::done; },
            [&] {
              const lane_group& now = missing[(std::min)(kept->finished.load(), missing.size() - 1)];
              return pending_wait{"for its group to make a communicator for collectives", now.members, number_of(now)};
            });
      } catch (...) {
        maker.detach();
        throw;
      }
      maker.join();
      check(kept->code, "MPI_Comm_create_group", nothing);
    }
    for (std::size_t i = 0; i < missing.size(); ++i) {
      MPI_Group_free(&kept->members[i]);
      groups_[key_of(missing[i])] = kept->made[i];
      check(MPI_Comm_set_errhandler(kept->made[i], MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", nothing);
    }
    release(kept);
  }
  /// The communicator of a group, made by `make_groups`.
  [[nodiscard]] MPI_Comm of_group(const schedule::rank_group& members, int lane) const {
    return groups_.at(key_of({members, lane}));
  }

  /// The helper threads that kernels share. Null if the rank's own thread is the only one.
  [[nodiscard]] thread_team* team() const noexcept { return team_.get(); }
  void start_team() {
    if (team_ == nullptr && get_options().threads_per_rank > 1) {
      team_ = std::make_unique<thread_team>(get_options().threads_per_rank);
    }
  }

  /// Returns when all ranks have come to the same call. Every collective call begins with this one, so that no rank
  /// reads what belongs to another call. Throws `std::invalid_argument` on all ranks if only the type or number of
  /// their values differ; fails the world if they make different calls.
  void meet(detail::collective_signature call) {
    const presence here = enter();
    call.sequence = signatures_++;
    struct buffers {
      std::vector<std::byte> all;
    };
    constexpr std::size_t each = detail::collective_signature::size;
    const auto ranks = static_cast<std::size_t>(size());
    const auto kept = retain<buffers>();
    kept->all.resize(each * ranks);
    const auto local = call.serialize();
    std::copy(local.begin(), local.end(), kept->all.begin() + static_cast<std::ptrdiff_t>(each) * rank());
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, kept->all.data(), static_cast<int>(each), MPI_BYTE, get(),
                         &request),
          "MPI_Iallgather", nothing);
    wait_for_all(request, "MPI_Iallgather");
    std::vector<detail::collective_signature> calls(ranks);
    for (std::size_t r = 0; r < ranks; ++r) {
      if (detail::collective_signature::parse(std::span{kept->all}.subspan(each * r, each), calls[r])) continue;
      fail("rank " + std::to_string(r) + " comes to a collective call with a malformed signature; " +
           "build all ranks with one version of this library");
    }
    release(kept);
    detail::require_same_call(calls, [this](const std::string& why) { fail(why); });
  }

  void barrier() {
    const presence here = enter();
    collective("at a barrier", [&] { meet({detail::collective_call::barrier}); });
  }

  /// Returns the texts of all ranks, together at most 2 GiB.
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text, detail::collective_call call) {
    const presence here = enter();
    return collective("at an all_gather", [&] {
      meet({call});
      return gather(text);
    });
  }

  /// Sends each rank the same number of values, in the order of the ranks, and returns what this rank receives. A part
  /// of a collective call.
  [[nodiscard]] std::vector<std::uint64_t> all_to_all(const std::vector<std::uint64_t>& numbers) {
    struct buffers {
      std::vector<std::uint64_t> given, taken;
    };
    const auto kept = retain<buffers>();
    kept->given = numbers;
    kept->taken.resize(numbers.size());
    const int each = static_cast<int>(numbers.size()) / size();
    MPI_Request request = MPI_REQUEST_NULL;
    check(
        MPI_Ialltoall(kept->given.data(), each, MPI_UINT64_T, kept->taken.data(), each, MPI_UINT64_T, get(), &request),
        "MPI_Ialltoall", nothing);
    wait_for_all(request, "MPI_Ialltoall");
    release(kept);
    return kept->taken;
  }

  /// Returns the texts of all ranks. A part of a collective call.
  [[nodiscard]] std::vector<std::string> gather(const std::string& text) {
    struct buffers {
      std::string local, all;
      std::vector<std::int64_t> sizes;
      std::vector<int> counts, offsets;
    };
    const auto ranks = static_cast<std::size_t>(size());
    const auto kept = retain<buffers>();
    kept->local = text;
    kept->sizes.assign(ranks, 0);
    kept->sizes[static_cast<std::size_t>(rank())] = static_cast<std::int64_t>(text.size());
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, kept->sizes.data(), 1, MPI_INT64_T, get(), &request),
          "MPI_Iallgather", nothing);
    wait_for_all(request, "MPI_Iallgather");

    std::int64_t total = 0;
    for (const std::int64_t size : kept->sizes) {
      kept->offsets.push_back(static_cast<int>(total));
      if (size < 0 || size > INT_MAX - total)
        throw std::length_error{"orrery: mpi::world: all_gather: the texts have more than 2 GiB"};
      total += size;
      kept->counts.push_back(static_cast<int>(size));
    }
    kept->all.resize(static_cast<std::size_t>(total));
    check(MPI_Iallgatherv(kept->local.data(), static_cast<int>(kept->local.size()), MPI_CHAR, kept->all.data(),
                          kept->counts.data(), kept->offsets.data(), MPI_CHAR, get(), &request),
          "MPI_Iallgatherv", nothing);
    wait_for_all(request, "MPI_Iallgatherv");

    std::vector<std::string> texts;
    for (std::size_t r = 0; r < ranks; ++r) {
      texts.push_back(
          kept->all.substr(static_cast<std::size_t>(kept->offsets[r]), static_cast<std::size_t>(kept->counts[r])));
    }
    release(kept);
    return texts;
  }

  /// Reserves `count` consecutive tags for the next plan and returns the first. All ranks make the same request.
  [[nodiscard]] int take_tags(int count) {
    if (count > last_tag_ - group_tag) {
      throw disagreement{"orrery: mpi::world: the program has lanes up to " + std::to_string(count - 1) +
                         ", but this MPI library has " + std::to_string(last_tag_) + " tags; number the lanes from 0"};
    }
    // Tags of old plans may be reused: messages of one pair of ranks and tag arrive in order.
    if (count > last_tag_ - next_tag_ + 1) next_tag_ = group_tag + 1;
    return std::exchange(next_tag_, next_tag_ + count);
  }

 private:
  static constexpr int group_tag = control_messages::tag + 1;  // used while communicators of groups are made

  /// The work of the thread that makes the communicators of groups.
  struct creation {
    enum class state : std::uint8_t { prepared, cancelled, begun, done };

    MPI_Comm from = MPI_COMM_NULL;
    std::vector<MPI_Group> members;
    std::vector<MPI_Comm> made;
    int code = MPI_SUCCESS;
    std::atomic<std::size_t> finished = 0;
    std::atomic<state> now = state::prepared;

    void begin(state next) noexcept {
      now.store(next, std::memory_order_release);
      now.notify_all();
    }
    void run() noexcept {
      now.wait(state::prepared, std::memory_order_acquire);
      if (now.load(std::memory_order_acquire) == state::cancelled) return;
      for (std::size_t i = 0; i < members.size() && code == MPI_SUCCESS; ++i) {
        code = MPI_Comm_create_group(from, members[i], group_tag, &made[i]);
        finished.store(i + 1);
      }
      now.store(state::done, std::memory_order_release);
    }
  };

  using group_key = std::tuple<int, int, int, int>;  // first rank, stride, count and lane
  [[nodiscard]] static group_key key_of(const lane_group& group) {
    return {group.members.first, group.members.stride, group.members.count, group.lane};
  }
  /// A number that is the same on all members for making their communicator, and almost surely no other call's.
  [[nodiscard]] static std::uint64_t number_of(const lane_group& group) noexcept {
    std::uint64_t number = static_cast<std::uint64_t>(group.lane) + 1;
    for (const int part : {group.members.first, group.members.stride, group.members.count}) {
      number = number * 0x9e3779b97f4a7c15 + static_cast<std::uint64_t>(part) + 1;
    }
    return number | std::uint64_t{1} << 63;
  }

  std::unique_ptr<thread_team> team_;
  std::map<group_key, MPI_Comm> groups_;
  int last_tag_ = 32767;
  int next_tag_ = group_tag + 1;
  std::uint64_t signatures_ = 0;  // collective calls of this rank so far
};

}  // namespace orrery::mpi
