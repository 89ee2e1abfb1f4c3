// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>

#include <mpi.h>

#include "orrery/schedule/builder.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/detail/failure_state.hpp"
#include "orrery/transport/detail/peer_text.hpp"
#include "orrery/transport/mpi/control_messages.hpp"
#include "orrery/transport/mpi/memory.hpp"
#include "orrery/transport/mpi/thread_access.hpp"
#include "orrery/transport/mpi/wait_chain.hpp"
#include "orrery/transport/mpi_options.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::mpi {

/// A duplicate of a trainer's communicator in which every wait ends: when what it waits for is there, when another rank
/// has failed, or at the deadline. Then the world has failed, on all ranks and for good.
///
/// Ranks send each other control messages, under a tag that nothing else uses. The first rank that fails sends its
/// message to all others. Waiting ranks poll for control messages, so they fail with that message instead of at their
/// own deadline. Before its deadline, a rank also asks the others whom they wait for (see `wait_chain_query`).
class waiting_communicator : public thread_access {
 public:
  waiting_communicator(MPI_Comm parent, const options& options)
      : thread_access{parent, options},
        options_{options},
        rank_{number_from(parent, MPI_Comm_rank)},
        size_{number_from(parent, MPI_Comm_size)},
        control_messages_{size_} {
    const presence here{*this, presence::on_entry::wait};
    own_ = duplicate(parent, [] { return pending_wait{"for all ranks to make the same world"}; });
  }
  waiting_communicator(const waiting_communicator&) = delete;
  waiting_communicator& operator=(const waiting_communicator&) = delete;

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] const options& get_options() const noexcept { return options_; }
  [[nodiscard]] MPI_Comm get() const noexcept { return own_; }

  /// Enters for a collective call, or to begin a call of a plan. Throws `std::logic_error`, and changes nothing, if
  /// this thread may not call MPI, if another thread is in a call, and after MPI_Finalize. Throws `transport_error` if
  /// the world has failed.
  presence enter(const char* doing = "coming to a collective call") {
    expect_thread();
    presence here{*this, presence::on_entry::try_once};
    if (here && failed()) throw_failure(doing);
    expect_free(here);
    become_caller();
    return here;
  }
  /// Enters to continue a call of a plan, from any thread that may call MPI.
  presence resume() {
    expect_thread();
    presence here{*this, presence::on_entry::wait};
    become_caller();
    return here;
  }

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
      if (looks % 16 == 0 || failed()) {
        const bool news = read_control_messages(pending);
        if (failed()) throw_failure("waiting " + pending().text);
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
    if (!is_caller() || failed()) return;
    const presence here{*this, presence::on_entry::try_once};
    if (!here) return;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_progress_) return;
    next_progress_ = now + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                               std::chrono::duration<double>((std::min)(options_.progress_interval, 1e6)));
    // Unlike a test of requests that have completed, a probe that finds nothing always makes progress.
    try {
      read_control_messages([] { return pending_wait{}; });
    } catch (...) {  // the failure is recorded, or this rank does not answer
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
    if (failed()) return;
    char digits[16];
    const auto length = static_cast<std::size_t>(std::to_chars(digits, digits + sizeof digits, rank_).ptr - digits);
    failure_.record({"rank ", std::string_view{digits, length}, " ", std::string_view{parts}...});
    notify_peers();
  }
  [[nodiscard]] bool failed() const noexcept { return failure_.happened(); }
  /// Polls for control messages if this thread may call MPI and no other is inside. Returns false if the world has
  /// failed.
  [[nodiscard]] bool usable() {
    if (failed() || !may_call_here() || !running()) return !failed();
    const presence here{*this, presence::on_entry::try_once};
    try {
      if (here) read_control_messages([] { return pending_wait{}; });
    } catch (const transport_error&) {  // the failure is recorded
    }
    return !failed();
  }

  /// Makes buffers of a collective call. They stay until `release`, since a call that is given up may still write to
  /// them.
  template <class Buffers>
  [[nodiscard]] static std::shared_ptr<Buffers> retain() {
    return abandoned_buffers::all().retain<Buffers>();
  }
  static void release(const std::shared_ptr<void>& completed) { abandoned_buffers::all().release(completed); }

 protected:
  ~waiting_communicator() {
    if (may_free() && own_ != MPI_COMM_NULL) MPI_Comm_free(&own_);
  }

  /// True if communicators may be freed. Not after a failure, with which communications may be under way.
  [[nodiscard]] bool may_free() const noexcept { return !failed() && running() && may_call_here(); }

  /// Duplicates a communicator. Collective.
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

  /// Counts a collective call of MPI on all ranks. The same number on all of them, which make the same calls.
  [[nodiscard]] std::uint64_t next_collective_call() noexcept { return ++collective_calls_; }

 private:
  static constexpr double longest_query = 2;  // seconds

  [[nodiscard]] static int number_from(MPI_Comm parent, int (*ask)(MPI_Comm, int*)) {
    int number = 0;
    ask(parent, &number);
    return number;
  }

  void record_failure(std::string_view why) noexcept {
    if (failure_.record(why)) notify_peers();
  }
  void notify_peers() noexcept {
    if (peers_notified_ || own_ == MPI_COMM_NULL || !may_call_here() || !running()) return;
    peers_notified_ = true;
    control_messages_.send_notice(own_, rank_, failure_.why());
  }

  /// `doing` is what this rank was doing, if another rank failed first.
  [[noreturn]] void throw_failure(const std::string& doing) {
    notify_peers();
    failure_.stop(rank_, message_, doing);
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
    while (own_ != MPI_COMM_NULL && !failed() && control_messages::take(own_, read, checked_call, malformed)) {
      if (read.kind == control_messages::kind::notice) {
        peers_notified_ = true;  // the other ranks have the message
        failure_.record(read.text);
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
  MPI_Comm own_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  std::uint64_t collective_calls_ = 0;
  mpi::control_messages control_messages_;
  mpi::wait_chain_query query_;
  std::uint64_t queries_ = 0;
  bool peers_notified_ = false;  // the other ranks have the message
  detail::failure_state failure_{"; this world and its communicator cannot be used any more",
                                 control_messages::longest - 1};
  std::string message_;
  std::chrono::steady_clock::time_point next_progress_{};
};

}  // namespace orrery::mpi
