// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <mpi.h>

#include "orrery/kernel/thread_team.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/transport/deadline.hpp"
#include "orrery/transport/describe.hpp"
#include "orrery/transport/mpi_inquiry.hpp"
#include "orrery/transport/mpi_letters.hpp"
#include "orrery/transport/mpi_memory.hpp"
#include "orrery/transport/mpi_options.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::mpi {

/// The world's own communicator, and its failure. Shared by the world and its channels.
///
/// Ranks write each other letters, under a tag that nothing else has: the first that fails tells all others why, so
/// that whoever waits, and looks for letters now and then, fails with that rank's sentence instead of its own deadline.
/// And before a deadline they ask each other whom they wait for (see `inquiry`).
class communicator {
 public:
  communicator(MPI_Comm parent, const options& how) : options_{how}, owner_{std::this_thread::get_id()} {
    if (const std::string wrong = what_is_wrong_with(how.deadline, how.threads_per_rank); !wrong.empty()) refuse(wrong);
    if (!(how.progress_interval >= 0)) {
      refuse("progress_interval is " + std::to_string(how.progress_interval) + ", expected seconds, at least 0");
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
    if (level < MPI_THREAD_FUNNELED && how.threads_per_rank > 1) {
      refuse("threads_per_rank is " + std::to_string(how.threads_per_rank) +
             ", but MPI was initialised for a single thread; ask MPI_Init_thread for MPI_THREAD_FUNNELED");
    }
    if (level < MPI_THREAD_SERIALIZED && main_thread == 0) {
      refuse("this is not the thread that initialised MPI; make the world there, or ask for MPI_THREAD_SERIALIZED");
    }

    MPI_Comm_rank(parent, &rank_);
    MPI_Comm_size(parent, &size_);
    MPI_Request request = MPI_REQUEST_NULL;
    const auto made = keep<MPI_Comm>();
    check(MPI_Comm_idup(parent, made.get(), &request), "MPI_Comm_idup", nothing);
    wait(request, "MPI_Comm_idup", [] { return waiting{"for all ranks to make the same world"}; });
    own_ = *made;
    forget(made);
    check(MPI_Comm_set_errhandler(own_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", nothing);
    void* bound = nullptr;
    int known = 0;
    check(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, static_cast<void*>(&bound), &known), "MPI_Comm_get_attr",
          nothing);
    last_tag_ = known != 0 ? *static_cast<const int*>(bound) : 32767;
  }
  communicator(const communicator&) = delete;
  communicator& operator=(const communicator&) = delete;
  ~communicator() {
    if (failed_ || !running()) return;
    for (auto& [members, made] : groups_) MPI_Comm_free(&made);
    if (own_ != MPI_COMM_NULL) MPI_Comm_free(&own_);
  }

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] const options& how() const noexcept { return options_; }
  [[nodiscard]] MPI_Comm get() const noexcept { return own_; }

  /// A communicator of some of the ranks, in their order, for one lane. Made when it is first asked for, by all
  /// members; ranks that are in several groups ask for them in the order of (first, stride, count, lane). MPI makes it
  /// in a call that waits for the others without a deadline.
  [[nodiscard]] MPI_Comm of_group(const rank_group& members, int lane) {
    MPI_Comm& made =
        groups_.try_emplace({members.first, members.stride, members.count, lane}, MPI_COMM_NULL).first->second;
    if (made != MPI_COMM_NULL) return made;
    std::vector<int> ranks;
    for (int i = 0; i < members.count; ++i) ranks.push_back(members.member(i));
    MPI_Group all = MPI_GROUP_NULL;
    MPI_Group some = MPI_GROUP_NULL;
    check(MPI_Comm_group(own_, &all), "MPI_Comm_group", nothing);
    check(MPI_Group_incl(all, members.count, ranks.data(), &some), "MPI_Group_incl", nothing);
    check(MPI_Comm_create_group(own_, some, group_tag, &made), "MPI_Comm_create_group", nothing);
    MPI_Group_free(&some);
    MPI_Group_free(&all);
    check(MPI_Comm_set_errhandler(made, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", nothing);
    return made;
  }

  /// The threads that kernels share; null if the rank's own is all.
  [[nodiscard]] thread_team* team() const noexcept { return team_.get(); }
  void start_team() {
    if (team_ == nullptr && options_.threads_per_rank > 1) {
      team_ = std::make_unique<thread_team>(options_.threads_per_rank);
    }
  }

  /// Says nothing more about where an MPI call failed.
  static std::string nothing() { return ""; }

  /// Throws if this is another thread than the one that made the world, or if the world has failed.
  void enter(const char* doing = "coming to a collective call") {
    if (std::this_thread::get_id() != owner_) {
      throw std::logic_error{
          "orrery: mpi::world: called from another thread than the one that made it; use it there only, as "
          "MPI_THREAD_FUNNELED demands"};
    }
    if (failed_) throw_failure(doing);
  }

  /// Throws if an MPI call has failed; `where`, called only then, says in which step, for which block and peer.
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

  /// Returns when `done()`, and throws when another rank has failed or after the deadline. Leaves the core to others
  /// between two looks: there may be more ranks than cores. `what()`, a `waiting`, is called only when somebody asks.
  ///
  /// Shortly before the deadline this rank asks whom it waits for in the end; so only then it may allocate.
  template <class Done, class What>
  void wait_until(const Done& done, const What& what) {
    if (done()) return;
    const auto deadline = deadline_in(options_.deadline);
    const auto time_to_ask = deadline_in(options_.deadline - (std::min)(options_.deadline / 2, longest_inquiry));
    bool asking = false;
    for (unsigned looks = 1; !done(); ++looks) {
      if (looks % 16 == 0 || failed_) {
        const bool news = read_letters(what);
        if (failed_) throw_failure("waiting " + what().text);
        const auto now = std::chrono::steady_clock::now();
        if (now >= time_to_ask && (!asking || news)) {
          if (!asking) begin_inquiry(what());
          asking = true;
          static_cast<void>(follow_inquiry());
        }
        if (now >= deadline) {
          fail("rank " + std::to_string(rank_) + " has waited " + describe_seconds(options_.deadline) + " " +
               what().text + follow_inquiry());
        }
      }
      std::this_thread::yield();
    }
  }
  /// The same for one request.
  template <class What>
  void wait(MPI_Request& request, const char* call, const What& what) {
    wait_until(
        [&] {
          int done = 0;
          check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), call, [&] { return what().text; });
          return done != 0;
        },
        what);
  }
  /// The same for a collective call of all ranks.
  void wait_for_all(MPI_Request& request, const char* call) {
    const std::uint64_t number = ++collective_calls_;
    wait(request, call, [&] {
      return waiting{"for all ranks to come to the same collective call", {0, size_}, number};
    });
  }

  /// Lets the MPI library work for a moment.
  void progress() noexcept {
    if (std::this_thread::get_id() != owner_ || failed_) return;  // a kernel may have threads of its own
    const auto now = std::chrono::steady_clock::now();
    if (now < next_progress_) return;
    next_progress_ = now + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                               std::chrono::duration<double>((std::min)(options_.progress_interval, 1e6)));
    // Unlike a test of requests that have completed, a probe that finds nothing always makes progress.
    try {
      read_letters([] { return waiting{}; });
    } catch (...) {  // failed_ says so, or this rank gives no answer
    }
  }

  /// Fails on this rank, and tells the others why.
  [[noreturn]] void fail(const std::string& why) {
    if (failed_) throw_failure("");
    give_notice(why);
    throw_failure("");
  }
  /// The same without throwing.
  void give_notice(const std::string& why) {
    if (failed_) return;
    failed_ = true;
    failure_ = why;
    if (own_ == MPI_COMM_NULL || !running()) return;
    for (int other = 0; other < size_; ++other) {
      if (other != rank_) letters_.send(own_, other, letters::kind::notice, why);
    }
  }
  [[nodiscard]] bool failed() const noexcept { return failed_; }
  [[nodiscard]] bool usable() {
    try {
      if (!failed_) read_letters([] { return waiting{}; });
    } catch (const transport_error&) {  // failed_ says so
    }
    return !failed_;
  }

  /// A collective call that is given up may go on writing: its buffers stay until it has completed.
  template <class Buffers>
  [[nodiscard]] static std::shared_ptr<Buffers> keep() {
    auto made = std::make_shared<Buffers>();
    given_up().push_back(made);
    return made;
  }
  static void forget(const std::shared_ptr<void>& completed) {
    auto& all = given_up();
    all.erase(std::remove(all.begin(), all.end(), completed), all.end());
  }

  void barrier() {
    enter();
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ibarrier(own_, &request), "MPI_Ibarrier", nothing);
    wait_for_all(request, "MPI_Ibarrier");
  }

  /// The texts of all ranks. Together at most 2 GiB.
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text) {
    enter();
    struct buffers {
      std::string mine, all;
      std::vector<std::int64_t> sizes;
      std::vector<int> counts, offsets;
    };
    const auto ranks = static_cast<std::size_t>(size_);
    const auto kept = keep<buffers>();
    kept->mine = text;
    kept->sizes.assign(ranks, 0);
    kept->sizes[static_cast<std::size_t>(rank_)] = static_cast<std::int64_t>(text.size());
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, kept->sizes.data(), 1, MPI_INT64_T, own_, &request),
          "MPI_Iallgather", nothing);
    wait_for_all(request, "MPI_Iallgather");

    std::int64_t total = 0;
    for (const std::int64_t size : kept->sizes) {
      kept->offsets.push_back(static_cast<int>(total));
      total += size;
      if (total > INT_MAX) throw std::length_error{"orrery: mpi::world: all_gather: the texts have more than 2 GiB"};
      kept->counts.push_back(static_cast<int>(size));
    }
    kept->all.resize(static_cast<std::size_t>(total));
    check(MPI_Iallgatherv(kept->mine.data(), static_cast<int>(kept->mine.size()), MPI_CHAR, kept->all.data(),
                          kept->counts.data(), kept->offsets.data(), MPI_CHAR, own_, &request),
          "MPI_Iallgatherv", nothing);
    wait_for_all(request, "MPI_Iallgatherv");

    std::vector<std::string> texts;
    for (std::size_t r = 0; r < ranks; ++r) {
      texts.push_back(
          kept->all.substr(static_cast<std::size_t>(kept->offsets[r]), static_cast<std::size_t>(kept->counts[r])));
    }
    forget(kept);
    return texts;
  }

  /// Gives each rank equally many numbers, in the order of the ranks, and returns what they give to this one.
  [[nodiscard]] std::vector<std::uint64_t> all_to_all(const std::vector<std::uint64_t>& numbers) {
    enter();
    struct buffers {
      std::vector<std::uint64_t> given, taken;
    };
    const auto kept = keep<buffers>();
    kept->given = numbers;
    kept->taken.resize(numbers.size());
    const int each = static_cast<int>(numbers.size()) / size_;
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ialltoall(kept->given.data(), each, MPI_UINT64_T, kept->taken.data(), each, MPI_UINT64_T, own_, &request),
          "MPI_Ialltoall", nothing);
    wait_for_all(request, "MPI_Ialltoall");
    forget(kept);
    return kept->taken;
  }

  /// The first of `count` tags in a row that the next plan has for itself. All ranks ask alike.
  [[nodiscard]] int take_tags(int count) {
    if (count > last_tag_ - group_tag) {
      throw std::invalid_argument{"orrery: mpi::world: the program has lanes up to " + std::to_string(count - 1) +
                                  ", but this MPI library has " + std::to_string(last_tag_) +
                                  " tags; number the lanes from 0"};
    }
    // Old plans' tags may be taken again: messages of one pair and tag arrive in order.
    if (count > last_tag_ - next_tag_ + 1) next_tag_ = group_tag + 1;
    return std::exchange(next_tag_, next_tag_ + count);
  }

 private:
  static constexpr int group_tag = letters::tag + 1;  // while communicators of groups are made
  static constexpr double longest_inquiry = 2;        // seconds

  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: mpi::world: " + why}; }

  /// Always the same sentence. `doing`: what this rank was at, if it is not the one that failed first.
  [[noreturn]] void throw_failure(const std::string& doing) {
    if (sentence_.empty()) {
      sentence_ = describe_stop(rank_, failure_, doing, "; this world and its communicator cannot be used any more");
    }
    throw transport_error{sentence_};
  }

  /// Reads what others have written: why they have failed, what they ask and what they answer. Is there an answer? To
  /// those who ask, this rank waits for `what()`.
  template <class What>
  bool read_letters(const What& what) {
    bool news = false;
    const auto checked = [&](int code, const char* call) { check(code, call, [&] { return what().text; }); };
    letters::letter read;
    while (own_ != MPI_COMM_NULL && !failed_ && letters::take(own_, read, checked)) {
      if (read.kind == letters::kind::notice) {
        failed_ = true;  // the others know it
        failure_ = read.text;
      } else if (read.kind == letters::kind::question) {
        const waiting mine = what();
        std::ostringstream written;
        written << read.text << ' ' << mine.whom.first << ' ' << mine.whom.count << ' ' << mine.whom.stride << ' '
                << mine.call;
        letters_.send(own_, read.from, letters::kind::answer, written.str());
      } else {
        std::istringstream written{read.text};
        std::uint64_t of_inquiry = 0;
        waiting theirs;
        written >> of_inquiry >> theirs.whom.first >> theirs.whom.count >> theirs.whom.stride >> theirs.call;
        if (of_inquiry != inquiries_) continue;
        inquiry_.take(read.from, theirs);
        news = true;
      }
    }
    return news;
  }

  void begin_inquiry(const waiting& mine) {
    ++inquiries_;
    inquiry_.begin(rank_, size_, mine);
  }
  [[nodiscard]] std::string follow_inquiry() {
    if (own_ == MPI_COMM_NULL) return "";
    return inquiry_.follow(
        [&](int other) { letters_.send(own_, other, letters::kind::question, std::to_string(inquiries_)); });
  }

  options options_;
  std::thread::id owner_;
  std::unique_ptr<thread_team> team_;
  MPI_Comm own_ = MPI_COMM_NULL;
  std::map<std::tuple<int, int, int, int>, MPI_Comm> groups_;  // by first rank, stride, count and lane
  int rank_ = 0;
  int size_ = 1;
  int last_tag_ = 32767;
  int next_tag_ = group_tag + 1;
  std::uint64_t collective_calls_ = 0;
  mpi::letters letters_;
  mpi::inquiry inquiry_;
  std::uint64_t inquiries_ = 0;
  bool failed_ = false;
  std::string failure_;
  std::string sentence_;
  std::chrono::steady_clock::time_point next_progress_{};
};

}  // namespace orrery::mpi
