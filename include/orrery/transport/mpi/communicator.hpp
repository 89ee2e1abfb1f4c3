// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <mpi.h>

#include "orrery/host/thread_team.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/tensor/math.hpp"
#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/detail/peer_text.hpp"
#include "orrery/transport/mpi/control_messages.hpp"
#include "orrery/transport/mpi/memory.hpp"
#include "orrery/transport/mpi/wait_chain.hpp"
#include "orrery/transport/mpi_options.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::mpi {

/// The communicator of a world, and the failure of that world. Shared by the world and its channels.
///
/// Ranks send each other control messages, under a tag that nothing else uses. The first rank that fails sends its
/// message to all others. Waiting ranks poll for control messages, so they fail with that message instead of at their
/// own deadline. Before its deadline, a rank also asks the others whom they wait for (see `wait_chain_query`).
///
/// One thread may be inside at a time (see `presence`). A thread that comes while another one is inside, or while a
/// call that another thread has begun is not finished, is refused. So is every thread from which MPI's thread level
/// allows no calls.
class communicator {
 public:
  communicator(MPI_Comm parent, const options& options)
      : options_{options},
        level_{checked(parent, options)},
        maker_{std::this_thread::get_id()},
        rank_{number_from(parent, MPI_Comm_rank)},
        size_{number_from(parent, MPI_Comm_size)},
        control_messages_{size_} {
    failure_.reserve(control_messages::longest);
    const presence here{*this, presence::on_entry::wait};
    own_ = duplicate(parent, [] { return pending_wait{"for all ranks to make the same world"}; });
    void* bound = nullptr;
    int known = 0;
    check(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, static_cast<void*>(&bound), &known), "MPI_Comm_get_attr",
          nothing);
    last_tag_ = known != 0 ? *static_cast<const int*>(bound) : 32767;
  }
  communicator(const communicator&) = delete;
  communicator& operator=(const communicator&) = delete;
  ~communicator() {
    if (failed_ || !running() || !may_call_here()) return;
    for (auto& [members, made] : groups_) {
      if (made != MPI_COMM_NULL) MPI_Comm_free(&made);
    }
    if (own_ != MPI_COMM_NULL) MPI_Comm_free(&own_);
  }

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] const options& get_options() const noexcept { return options_; }
  [[nodiscard]] MPI_Comm get() const noexcept { return own_; }

  /// Marks the calling thread as the one that is inside; no other calls MPI for this communicator. A thread may enter
  /// again. Empty if `on_entry` is `try_once` and another thread is inside.
  class [[nodiscard]] presence {
   public:
    enum class on_entry : std::uint8_t { try_once, wait };

    presence(communicator& world, on_entry mode) noexcept {
      const std::thread::id me = std::this_thread::get_id();
      if (world.inside_.load(std::memory_order_relaxed) == me) {
        inside_ = true;
        return;
      }
      for (std::thread::id other; !world.inside_.compare_exchange_weak(other, me, std::memory_order_acquire);) {
        if (other != std::thread::id{} && mode == on_entry::try_once) return;
        if (other != std::thread::id{}) std::this_thread::yield();
        other = {};
      }
      inside_ = true;
      leaves_ = &world;
    }
    presence(presence&& other) noexcept
        : inside_{std::exchange(other.inside_, false)}, leaves_{std::exchange(other.leaves_, nullptr)} {}
    presence& operator=(presence&&) = delete;
    ~presence() {
      if (leaves_ != nullptr) leaves_->inside_.store(std::thread::id{}, std::memory_order_release);
    }

    explicit operator bool() const noexcept { return inside_; }

   private:
    bool inside_ = false;
    communicator* leaves_ = nullptr;  // null: the thread was inside before
  };

  /// May this thread call MPI? Under MPI_THREAD_SERIALIZED and above every thread may. Otherwise only the thread that
  /// initialised MPI may, which is the one that made the world.
  [[nodiscard]] bool may_call_here() const noexcept {
    return level_ >= MPI_THREAD_SERIALIZED || std::this_thread::get_id() == maker_;
  }

  /// Enters for a collective call, or to begin a call of a plan. Throws `std::logic_error`, and changes nothing, if
  /// this thread may not call MPI, if another thread is in a call, and after MPI_Finalize. Throws `transport_error` if
  /// the world has failed.
  presence enter(const char* doing = "coming to a collective call") {
    expect_thread();
    presence here{*this, presence::on_entry::try_once};
    if (here && failed_) throw_failure(doing);
    if (!here || (calls_under_way_ > 0 && caller_.load(std::memory_order_relaxed) != std::this_thread::get_id())) {
      throw std::logic_error{
          "orrery: mpi::world: called while another thread is in a call of this world, or has begun one that is not "
          "finished; make one call at a time, or give each thread a world of its own under MPI_THREAD_MULTIPLE"};
    }
    if (!running()) {
      throw std::logic_error{
          "orrery: mpi::world: called after MPI_Finalize; use worlds and operators before (they may be destroyed "
          "after)"};
    }
    caller_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    return here;
  }
  /// Enters to continue a call of a plan, from any thread that may call MPI.
  presence resume() {
    expect_thread();
    presence here{*this, presence::on_entry::wait};
    caller_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    return here;
  }
  /// Other threads are refused between these two. Call them inside.
  void begin_call() noexcept { ++calls_under_way_; }
  void end_call() noexcept { --calls_under_way_; }

  /// Runs the work of a collective call. If it throws on this rank only (out of memory, for example), fails the world,
  /// so that the others do not wait for this rank.
  template <class Work>
  decltype(auto) collective(const char* doing, const Work& work) try {
    return work();
  } catch (const transport_error&) {  // known to all ranks
    throw;
  } catch (const std::logic_error&) {  // an argument that all ranks refuse
    throw;
  } catch (const std::exception& e) {
    give_notice("failed ", doing, ": ", e.what());
    throw;
  } catch (...) {
    give_notice("failed ", doing);
    throw;
  }

  /// Can this world make communicators of some of its ranks? See `make_groups`.
  [[nodiscard]] bool makes_groups() const noexcept { return level_ == MPI_THREAD_MULTIPLE; }

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
      if (group.members.count < size_) {
        missing.push_back(group);
        continue;
      }
      const std::uint64_t number =
          ++collective_calls_;  // the same on all ranks, which come in the same order, since strides are positive
      groups_.emplace(key_of(group), duplicate(own_, [&] {
                        return pending_wait{"for all ranks to make a communicator for collectives", {0, size_}, number};
                      }));
    }
    const auto kept = retain<creation>();
    kept->from = own_;
    MPI_Group all = MPI_GROUP_NULL;
    check(MPI_Comm_group(own_, &all), "MPI_Comm_group", nothing);
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
      check(MPI_Ibarrier(own_, &request), "MPI_Ibarrier", nothing);
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
    if (team_ == nullptr && options_.threads_per_rank > 1) {
      team_ = std::make_unique<thread_team>(options_.threads_per_rank);
    }
  }

  /// For `check`: no details about where an MPI call failed.
  static std::string nothing() { return ""; }

  /// Throws if an MPI call has failed. `where()` names the step, block and peer; it is called for an error message
  /// only.
  template <class Where>
  void check(int code, const char* call, const Where& where) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    std::string why = std::string{call} + " failed on rank " + std::to_string(rank_);
    if (const std::string more = where(); !more.empty()) why += " " + more;
    fail(why + ": " + text);
  }

  /// Returns when `done()`. Throws if another rank has failed, or after the deadline. Yields the core between two
  /// polls, since there may be more ranks than cores. `what()` returns a `pending_wait`; it is called only if a rank
  /// asks, or for an error message.
  ///
  /// Shortly before the deadline this rank asks the others whom they wait for. Only then may it allocate.
  template <class Done, class Pending>
  void wait_until(const Done& done, const Pending& pending) {
    if (done()) return;
    const auto deadline = detail::deadline_in(options_.deadline);
    const auto time_to_ask = detail::deadline_in(options_.deadline - (std::min)(options_.deadline / 2, longest_query));
    bool asking = false;
    for (unsigned looks = 1; !done(); ++looks) {
      if (looks % 16 == 0 || failed_) {
        const bool news = read_control_messages(pending);
        if (failed_) throw_failure("waiting " + pending().text);
        const auto now = std::chrono::steady_clock::now();
        if (now >= time_to_ask && (!asking || news)) {
          if (!asking) begin_query(pending());
          asking = true;
          static_cast<void>(trace_wait_chain());
        }
        if (now >= deadline) {
          fail("rank " + std::to_string(rank_) + " has waited " + detail::describe_seconds(options_.deadline) + " " +
               pending().text + trace_wait_chain());
        }
      }
      std::this_thread::yield();
    }
  }
  /// Waits for one request.
  template <class Pending>
  void wait(MPI_Request& request, const char* call, const Pending& pending) {
    wait_until(
        [&] {
          int done = 0;
          check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), call, [&] { return pending().text; });
          return done != 0;
        },
        pending);
  }
  /// Waits for a collective call of all ranks.
  void wait_for_all(MPI_Request& request, const char* call) {
    const std::uint64_t number = ++collective_calls_;
    wait(request, call, [&] {
      return pending_wait{"for all ranks to come to the same collective call", {0, size_}, number};
    });
  }

  /// Lets the MPI library make progress, if this is the thread that made the last call.
  void progress() noexcept {
    if (caller_.load(std::memory_order_relaxed) != std::this_thread::get_id() || failed_) return;
    const presence here{*this, presence::on_entry::try_once};
    if (!here) return;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_progress_) return;
    next_progress_ = now + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                               std::chrono::duration<double>((std::min)(options_.progress_interval, 1e6)));
    // Unlike a test of requests that have completed, a probe that finds nothing always makes progress.
    try {
      read_control_messages([] { return pending_wait{}; });
    } catch (...) {  // failed_ is set, or this rank does not answer
    }
  }

  /// Fails this rank, and sends the message to the others.
  [[noreturn]] void fail(std::string_view why) {
    record_failure(why);
    throw_failure("");
  }
  /// Fails this rank with "rank 2 " and the parts, and sends that to the others. Does not throw, and allocates nothing,
  /// since memory may be what this rank has run out of. If the thread may not call MPI, the message is sent later by
  /// one that may.
  template <class... Parts>
  void give_notice(const Parts&... parts) noexcept {
    const presence here{*this, presence::on_entry::wait};
    if (failed_) return;
    failure_ = "rank ";
    const auto add = [&](std::string_view part) {
      failure_.append(part.substr(0, control_messages::longest - 1 - failure_.size()));
    };
    char digits[16];
    add({digits, static_cast<std::size_t>(std::to_chars(digits, digits + sizeof digits, rank_).ptr - digits)});
    add(" ");
    (add(parts), ...);
    failed_ = true;
    notify_peers();
  }
  [[nodiscard]] bool failed() const noexcept { return failed_; }
  /// Polls for control messages if this thread may call MPI and no other is inside. Returns false if the world has
  /// failed.
  [[nodiscard]] bool usable() {
    if (failed_ || !may_call_here() || !running()) return !failed_;
    const presence here{*this, presence::on_entry::try_once};
    try {
      if (here) read_control_messages([] { return pending_wait{}; });
    } catch (const transport_error&) {  // failed_ is set
    }
    return !failed_;
  }

  /// Makes buffers of a collective call. They stay until `release`, since a call that is given up may still write to
  /// them.
  template <class Buffers>
  [[nodiscard]] static std::shared_ptr<Buffers> retain() {
    return abandoned_buffers::all().retain<Buffers>();
  }
  static void release(const std::shared_ptr<void>& completed) { abandoned_buffers::all().release(completed); }

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
    const auto ranks = static_cast<std::size_t>(size_);
    const auto kept = retain<buffers>();
    kept->all.resize(each * ranks);
    const auto local = call.serialize();
    std::copy(local.begin(), local.end(), kept->all.begin() + static_cast<std::ptrdiff_t>(each) * rank_);
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, kept->all.data(), static_cast<int>(each), MPI_BYTE, own_,
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
    const int each = static_cast<int>(numbers.size()) / size_;
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ialltoall(kept->given.data(), each, MPI_UINT64_T, kept->taken.data(), each, MPI_UINT64_T, own_, &request),
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
    const auto ranks = static_cast<std::size_t>(size_);
    const auto kept = retain<buffers>();
    kept->local = text;
    kept->sizes.assign(ranks, 0);
    kept->sizes[static_cast<std::size_t>(rank_)] = static_cast<std::int64_t>(text.size());
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, kept->sizes.data(), 1, MPI_INT64_T, own_, &request),
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
                          kept->counts.data(), kept->offsets.data(), MPI_CHAR, own_, &request),
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
  static constexpr double longest_query = 2;                   // seconds

  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: mpi::world: " + why}; }

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

  /// Returns the thread level of MPI, if the arguments are valid.
  [[nodiscard]] static int checked(MPI_Comm parent, const options& options) {
    if (const std::string wrong = detail::options_error(options.deadline, options.threads_per_rank); !wrong.empty())
      refuse(wrong);
    if (!(options.progress_interval >= 0) || detail::math::is_nan(options.progress_interval)) {
      refuse("progress_interval is " + std::to_string(options.progress_interval) + ", expected seconds, at least 0");
    }
    if (!running()) refuse("MPI is not initialised, or finalised already; call MPI_Init_thread before");
    if (parent == MPI_COMM_NULL) refuse("the communicator is MPI_COMM_NULL; let only its members make a world");
    int inter = 0;
    MPI_Comm_test_inter(parent, &inter);
    if (inter != 0) refuse("the communicator is an intercommunicator; merge it by MPI_Intercomm_merge");
    int level = MPI_THREAD_SINGLE;
    int main_thread = 0;
    MPI_Query_thread(&level);
    MPI_Is_thread_main(&main_thread);
    if (level < MPI_THREAD_FUNNELED && options.threads_per_rank > 1) {
      refuse("threads_per_rank is " + std::to_string(options.threads_per_rank) +
             ", but MPI was initialised for a single thread; ask MPI_Init_thread for MPI_THREAD_FUNNELED");
    }
    if (level < MPI_THREAD_SERIALIZED && main_thread == 0) {
      refuse("this is not the thread that initialised MPI; make the world there, or ask for MPI_THREAD_SERIALIZED");
    }
    return level;
  }
  [[nodiscard]] static int number_from(MPI_Comm parent, int (*ask)(MPI_Comm, int*)) {
    int number = 0;
    ask(parent, &number);
    return number;
  }

  void expect_thread() const {
    if (may_call_here()) return;
    throw std::logic_error{
        "orrery: mpi::world: called from another thread than the one that initialised MPI, which MPI_THREAD_FUNNELED "
        "does not allow; ask MPI_Init_thread for MPI_THREAD_SERIALIZED or MPI_THREAD_MULTIPLE"};
  }

  template <class Pending>
  [[nodiscard]] MPI_Comm duplicate(MPI_Comm parent, const Pending& pending) {
    MPI_Request request = MPI_REQUEST_NULL;
    const auto made = retain<MPI_Comm>();
    check(MPI_Comm_idup(parent, made.get(), &request), "MPI_Comm_idup", nothing);
    wait(request, "MPI_Comm_idup", pending);
    const MPI_Comm finished = *made;
    release(made);
    check(MPI_Comm_set_errhandler(finished, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", nothing);
    return finished;
  }

  void record_failure(std::string_view why) noexcept {
    if (failed_) return;
    failure_ = why.substr(0, control_messages::longest - 1);
    failed_ = true;
    notify_peers();
  }
  void notify_peers() noexcept {
    if (peers_notified_ || own_ == MPI_COMM_NULL || !may_call_here() || !running()) return;
    peers_notified_ = true;
    control_messages_.send_notice(own_, rank_, failure_);
  }

  /// Throws the same message in every call. `doing` is what this rank was doing, if another rank failed first.
  [[noreturn]] void throw_failure(const std::string& doing) {
    notify_peers();
    if (message_.empty()) {
      message_ =
          detail::describe_stop(rank_, failure_, doing, "; this world and its communicator cannot be used any more");
    }
    throw transport_error{message_};
  }

  /// Receives control messages: failures, questions and answers. Answers questions with what this rank waits for,
  /// `what()`. Returns true if there was an answer.
  template <class Pending>
  bool read_control_messages(const Pending& pending) {
    bool news = false;
    const auto checked_call = [&](int code, const char* call) { check(code, call, [&] { return pending().text; }); };
    const auto malformed = [&](int from, const std::string& why) {
      fail("rank " + std::to_string(from) + " has sent rank " + std::to_string(rank_) + " a control message " + why +
           "; build all ranks with one version of this library");
    };
    control_messages::message read;
    while (own_ != MPI_COMM_NULL && !failed_ && control_messages::take(own_, read, checked_call, malformed)) {
      if (read.kind == control_messages::kind::notice) {
        peers_notified_ = true;  // the other ranks have the message
        failure_ = read.text;
        failed_ = true;
      } else if (read.kind == control_messages::kind::question) {
        std::uint64_t query = 0;
        if (!detail::peer_text{read.text}.number(query).ended())
          malformed(read.from, "that is not a valid question: \"" + read.text + "\"");
        const pending_wait local = pending();
        std::ostringstream written;
        written << query << ' ' << local.peers.first << ' ' << local.peers.count << ' ' << local.peers.stride << ' '
                << local.call;
        control_messages_.send(own_, read.from, control_messages::kind::answer, written.str());
      } else {
        std::uint64_t query = 0;
        pending_wait theirs;
        schedule::rank_group& peers = theirs.peers;
        detail::peer_text numbers{read.text};
        numbers.number(query).skip(" ").number(peers.first, 0, size_ - 1).skip(" ").number(peers.count, 0, size_);
        numbers.skip(" ").number(peers.stride, 1).skip(" ").number(theirs.call);
        if (!numbers.ended() || (peers.count > 0 && (size_ - 1 - peers.first) / peers.stride < peers.count - 1)) {
          malformed(read.from, "that is not a valid answer: \"" + read.text + "\"");
        }
        if (query != queries_) continue;
        query_.take(read.from, theirs);
        news = true;
      }
    }
    return news;
  }

  void begin_query(const pending_wait& local) {
    ++queries_;
    query_.begin(rank_, size_, local);
  }
  [[nodiscard]] std::string trace_wait_chain() {
    if (own_ == MPI_COMM_NULL) return "";
    return query_.trace([&](int other) {
      control_messages_.send(own_, other, control_messages::kind::question, std::to_string(queries_));
    });
  }

  options options_;
  int level_;              // of MPI
  std::thread::id maker_;  // under MPI_THREAD_FUNNELED the main thread
  std::atomic<std::thread::id> inside_{};
  std::atomic<std::thread::id> caller_{};  // the last thread that entered
  int calls_under_way_ = 0;                // calls of plans that the caller has begun
  std::unique_ptr<thread_team> team_;
  MPI_Comm own_ = MPI_COMM_NULL;
  std::map<group_key, MPI_Comm> groups_;
  int rank_ = 0;
  int size_ = 1;
  int last_tag_ = 32767;
  int next_tag_ = group_tag + 1;
  std::uint64_t signatures_ = 0;        // collective calls of this rank so far
  std::uint64_t collective_calls_ = 0;  // collective calls of MPI on all ranks so far
  mpi::control_messages control_messages_;
  mpi::wait_chain_query query_;
  std::uint64_t queries_ = 0;
  std::atomic<bool> failed_ = false;
  bool peers_notified_ = false;  // the other ranks have the message
  std::string failure_;
  std::string message_;
  std::chrono::steady_clock::time_point next_progress_{};
};

}  // namespace orrery::mpi
