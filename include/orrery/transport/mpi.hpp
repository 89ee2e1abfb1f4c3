// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <mpi.h>

#include "orrery/kernel/thread_team.hpp"
#include "orrery/kernel/tile.hpp"
#include "orrery/transport/deadline.hpp"
#include "orrery/transport/host_memory.hpp"
#include "orrery/transport/transport.hpp"

/// Ranks that are processes of an MPI job.
namespace orrery::mpi {

struct options {
  /// How long a rank waits for another, in seconds, before it fails with a sentence.
  double deadline = 60;
  /// Threads that compute in each rank: the rank's own and helpers, which all of its plans share, which sleep between
  /// calls and never call MPI. Started with the world's first plan. More than one needs MPI_THREAD_FUNNELED.
  int threads_per_rank = 1;
  /// Seconds between two calls of MPI while a tile is computed. Most MPI libraries move large messages only while the
  /// program is inside of MPI: without these calls nothing would fly.
  double progress_interval = 0.0002;
};

/// What must stay in memory until the process ends, because a communication that was given up may still use it.
inline std::vector<std::shared_ptr<void>>& given_up() {
  static std::vector<std::shared_ptr<void>> kept;
  return kept;
}

[[nodiscard]] inline bool running() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

/// The world's own communicator, and its failure. Shared by the world and its channels.
///
/// The first rank that fails sends a notice to all others, under a tag that nothing else has: whoever waits looks for
/// one now and then, and so fails with that rank's sentence instead of its own deadline.
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
    wait(request, "MPI_Comm_idup", [] { return std::string{"for all ranks to make the same world"}; });
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
    if (own_ != MPI_COMM_NULL && !failed_ && running()) MPI_Comm_free(&own_);
  }

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] const options& how() const noexcept { return options_; }
  [[nodiscard]] MPI_Comm get() const noexcept { return own_; }
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
  /// between two looks: there may be more ranks than cores.
  template <class Done, class What>
  void wait_until(const Done& done, const What& what) {
    if (done()) return;
    const auto deadline = deadline_in(options_.deadline);
    for (unsigned looks = 1; !done(); ++looks) {
      if (looks % 16 == 0) {
        read_notice(what);
        if (std::chrono::steady_clock::now() >= deadline) {
          fail("rank " + std::to_string(rank_) + " has waited " + describe_seconds(options_.deadline) + " " + what());
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
          check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), call, what);
          return done != 0;
        },
        what);
  }

  /// Lets the MPI library work for a moment.
  void progress() noexcept {
    if (std::this_thread::get_id() != owner_ || failed_) return;  // a kernel may have threads of its own
    const auto now = std::chrono::steady_clock::now();
    if (now < next_progress_) return;
    next_progress_ = now + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                               std::chrono::duration<double>((std::min)(options_.progress_interval, 1e6)));
    // Unlike a test of requests that have completed, a probe that finds nothing always makes progress. What it finds is
    // a notice, which the next wait reads.
    int found = 0;
    MPI_Iprobe(MPI_ANY_SOURCE, notice_tag, own_, &found, MPI_STATUS_IGNORE);
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
    const auto text = std::make_shared<std::string>(why.substr(0, longest_notice));
    given_up().push_back(text);
    for (int other = 0; other < size_; ++other) {
      if (other == rank_) continue;
      MPI_Request request = MPI_REQUEST_NULL;
      const int code =
          MPI_Isend(text->data(), static_cast<int>(text->size()), MPI_CHAR, other, notice_tag, own_, &request);
      if (code == MPI_SUCCESS) MPI_Request_free(&request);
    }
  }
  [[nodiscard]] bool failed() const noexcept { return failed_; }
  [[nodiscard]] bool usable() {
    try {
      if (!failed_) read_notice(nothing);
    } catch (const transport_error&) {  // read: failed_ says so
    }
    return !failed_;
  }

  static std::string for_all() { return "for all ranks to come to the same collective call"; }

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
    wait(request, "MPI_Ibarrier", for_all);
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
    wait(request, "MPI_Iallgather", for_all);

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
    wait(request, "MPI_Iallgatherv", for_all);

    std::vector<std::string> texts;
    for (std::size_t r = 0; r < ranks; ++r) {
      texts.push_back(
          kept->all.substr(static_cast<std::size_t>(kept->offsets[r]), static_cast<std::size_t>(kept->counts[r])));
    }
    forget(kept);
    return texts;
  }

  /// Gives each rank one number and returns what they give to this one.
  [[nodiscard]] std::vector<std::uint64_t> all_to_all(const std::vector<std::uint64_t>& numbers) {
    enter();
    struct buffers {
      std::vector<std::uint64_t> given, taken;
    };
    const auto kept = keep<buffers>();
    kept->given = numbers;
    kept->taken.resize(numbers.size());
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ialltoall(kept->given.data(), 1, MPI_UINT64_T, kept->taken.data(), 1, MPI_UINT64_T, own_, &request),
          "MPI_Ialltoall", nothing);
    wait(request, "MPI_Ialltoall", for_all);
    forget(kept);
    return kept->taken;
  }

  /// The first of `count` tags in a row that the next plan has for itself. All ranks ask alike.
  [[nodiscard]] int take_tags(int count) {
    if (count > last_tag_ - notice_tag) {
      throw std::invalid_argument{"orrery: mpi::world: the program has lanes up to " + std::to_string(count - 1) +
                                  ", but this MPI library has " + std::to_string(last_tag_) +
                                  " tags; number the lanes from 0"};
    }
    // Old plans' tags may be taken again: messages of one pair and tag arrive in order.
    if (count > last_tag_ - next_tag_ + 1) next_tag_ = notice_tag + 1;
    return std::exchange(next_tag_, next_tag_ + count);
  }

 private:
  static constexpr int notice_tag = 0;
  static constexpr std::size_t longest_notice = 512;

  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: mpi::world: " + why}; }

  /// Always the same sentence. `doing`: what this rank was at, if it is not the one that failed first.
  [[noreturn]] void throw_failure(const std::string& doing) {
    if (sentence_.empty()) {
      const std::string me = "rank " + std::to_string(rank_);
      sentence_ = "orrery: " + me + " stops: " + failure_ + (doing.empty() ? "" : "; " + me + " was " + doing) +
                  "; this world and its communicator cannot be used any more";
    }
    throw transport_error{sentence_};
  }

  /// Throws if another rank has sent a notice.
  template <class What>
  void read_notice(const What& what) {
    if (own_ == MPI_COMM_NULL) return;
    int found = 0;
    MPI_Status status;
    check(MPI_Iprobe(MPI_ANY_SOURCE, notice_tag, own_, &found, &status), "MPI_Iprobe", what);
    if (found == 0) return;
    char text[longest_notice];
    int length = 0;
    check(MPI_Recv(text, static_cast<int>(longest_notice), MPI_CHAR, status.MPI_SOURCE, notice_tag, own_, &status),
          "MPI_Recv", what);
    check(MPI_Get_count(&status, MPI_CHAR, &length), "MPI_Get_count", what);
    failed_ = true;  // the others know it
    failure_ = std::string(text, static_cast<std::size_t>(length));
    throw_failure(what().empty() ? "" : "waiting " + what());
  }

  options options_;
  std::thread::id owner_;
  std::unique_ptr<thread_team> team_;
  MPI_Comm own_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  int last_tag_ = 32767;
  int next_tag_ = notice_tag + 1;
  bool failed_ = false;
  std::string failure_;
  std::string sentence_;
  std::chrono::steady_clock::time_point next_progress_{};
};

/// The bytes of several pieces as one element of MPI, whatever their sizes: an MPI count is an int, so larger pieces
/// are cut, and pieces that follow each other in memory are joined.
class message_type {
 public:
  message_type(communicator& world, const std::vector<piece>& pieces) {
    std::vector<MPI_Aint> addresses;
    std::vector<int> lengths;
    const std::byte* end = nullptr;
    for (const piece& one : pieces) {
      for (std::int64_t at = 0; at < one.bytes;) {
        std::byte* const from = one.data + at;
        if (from == end && lengths.back() < most) {
          const std::int64_t more = (std::min)(one.bytes - at, std::int64_t{most - lengths.back()});
          lengths.back() += static_cast<int>(more);
          at += more;
        } else {
          const std::int64_t length = (std::min)(one.bytes - at, std::int64_t{most});
          MPI_Aint address = 0;
          world.check(MPI_Get_address(from, &address), "MPI_Get_address", communicator::nothing);
          addresses.push_back(address);
          lengths.push_back(static_cast<int>(length));
          at += length;
        }
        end = one.data + at;
      }
    }
    if (lengths.size() <= 1) {
      address_ = lengths.empty() ? nullptr : first_of(pieces).data;
      count_ = lengths.empty() ? 0 : lengths[0];
      return;
    }
    world.check(
        MPI_Type_create_hindexed(static_cast<int>(lengths.size()), lengths.data(), addresses.data(), MPI_BYTE, &made_),
        "MPI_Type_create_hindexed", communicator::nothing);
    world.check(MPI_Type_commit(&made_), "MPI_Type_commit", communicator::nothing);
    address_ = MPI_BOTTOM;
    count_ = 1;
  }
  message_type(const message_type&) = delete;
  message_type& operator=(const message_type&) = delete;
  ~message_type() {
    if (made_ != MPI_DATATYPE_NULL && running()) MPI_Type_free(&made_);
  }

  [[nodiscard]] void* address() const noexcept { return address_; }
  [[nodiscard]] int count() const noexcept { return count_; }
  [[nodiscard]] MPI_Datatype type() const noexcept { return made_ == MPI_DATATYPE_NULL ? MPI_BYTE : made_; }

 private:
  static constexpr int most = 1 << 30;

  static const piece& first_of(const std::vector<piece>& pieces) {
    return *std::find_if(pieces.begin(), pieces.end(), [](const piece& one) { return one.bytes > 0; });
  }

  void* address_ = nullptr;
  int count_ = 0;
  MPI_Datatype made_ = MPI_DATATYPE_NULL;
};

/// One rank's end of a plan. See `transport_channel`.
///
/// Each side of each exchange is one message and one persistent request, made with the plan and started in each call.
/// Exchanges that are remarked as collectives are sent one by one, too.
class channel {
 public:
  channel(std::shared_ptr<communicator> world, const program& p, const std::vector<exchange_pieces>& pieces)
      : plan_{std::make_unique<plan>(std::move(world), p, pieces)} {}

  void begin() {
    plan_->world->enter("beginning a call");
    if (plan_->begun && plan_->awaited != plan_->flights.size()) {
      plan_->world->fail("rank " + std::to_string(plan_->world->rank()) +
                         " begins a call, but has left its last one in the middle");
    }
    plan_->begun = true;
    plan_->awaited = 0;
  }
  void post(int e) { plan_->post(e); }
  void await(int e) { plan_->await(e); }
  void abandon(const std::string& why) {
    plan_->world->give_notice("rank " + std::to_string(plan_->world->rank()) + " failed " + why);
  }

  [[nodiscard]] host_context context() const noexcept {
    communicator& world = *plan_->world;
    return {world.team(), [](void* of) { static_cast<communicator*>(of)->progress(); }, &world};
  }

 private:
  struct plan {
    static constexpr auto receiving = static_cast<std::size_t>(way::receiving);
    static constexpr auto sending = static_cast<std::size_t>(way::sending);
    struct flight {
      MPI_Request requests[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};
      bool flying = false;
    };

    std::shared_ptr<communicator> world;
    program steps;
    std::vector<flight> flights;
    std::vector<std::unique_ptr<message_type>> types;
    bool begun = false;
    std::size_t awaited = 0;  // exchanges of this call

    plan(std::shared_ptr<communicator> on, const program& p, const std::vector<exchange_pieces>& pieces)
        : world{std::move(on)}, steps{p}, flights(pieces.size()) {
      const int first_tag = world->take_tags(agree(pieces));
      for (std::size_t i = 0; i < flights.size(); ++i) {
        const int e = static_cast<int>(i);
        const exchange& x = steps.exchanges[e];
        if (x.received.count > 0) {
          const message_type& all = *types.emplace_back(std::make_unique<message_type>(*world, pieces[i].received));
          world->check(MPI_Recv_init(all.address(), all.count(), all.type(), x.from, first_tag + x.lane, world->get(),
                                     &flights[i].requests[receiving]),
                       "MPI_Recv_init", [&] { return where(e, receiving); });
        }
        if (x.sent.count > 0) {
          const message_type& all = *types.emplace_back(std::make_unique<message_type>(*world, pieces[i].sent));
          world->check(MPI_Send_init(all.address(), all.count(), all.type(), x.to, first_tag + x.lane, world->get(),
                                     &flights[i].requests[sending]),
                       "MPI_Send_init", [&] { return where(e, sending); });
        }
      }
    }
    plan(const plan&) = delete;
    plan& operator=(const plan&) = delete;

    /// Receives that are still under way are cancelled, sends left to MPI.
    ~plan() {
      if (!running()) return;
      for (flight& one : flights) {
        for (const std::size_t end : {receiving, sending}) {
          MPI_Request& request = one.requests[end];
          if (request == MPI_REQUEST_NULL) continue;
          int done = one.flying ? 0 : 1;
          if (done == 0) MPI_Test(&request, &done, MPI_STATUS_IGNORE);
          if (done == 0 && end == receiving) MPI_Cancel(&request);
          const auto limit = std::chrono::steady_clock::now() + std::chrono::milliseconds{50};
          while (done == 0 && std::chrono::steady_clock::now() < limit) {
            if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
            std::this_thread::yield();
          }
          if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
        }
      }
    }

    void post(int e) {
      flight& one = flights[static_cast<std::size_t>(e)];
      one.flying = true;
      for (const std::size_t end : {receiving, sending}) {
        if (one.requests[end] == MPI_REQUEST_NULL) continue;
        world->check(MPI_Start(&one.requests[end]), "MPI_Start", [&] { return where(e, end); });
      }
    }

    void await(int e) {
      flight& one = flights[static_cast<std::size_t>(e)];
      MPI_Status statuses[2];
      world->wait_until(
          [&] {
            int done = 0;
            const int code = MPI_Testall(2, one.requests, &done, statuses);
            if (code == MPI_ERR_IN_STATUS) {
              for (const std::size_t end : {receiving, sending}) {
                const int of_one = statuses[end].MPI_ERROR;
                if (of_one == MPI_ERR_PENDING || one.requests[end] == MPI_REQUEST_NULL) continue;
                world->check(of_one, "MPI_Testall", [&] { return where(e, end); });
              }
            }
            world->check(code, "MPI_Testall", [&] { return where(e, receiving); });
            return done != 0;
          },
          [&] {
            int received = 0;
            MPI_Request_get_status(one.requests[receiving], &received, MPI_STATUS_IGNORE);
            return where(e, received != 0 ? sending : receiving);
          });
      one.flying = false;
      ++awaited;
    }

    [[nodiscard]] std::string where(int e, std::size_t end) const {
      return describe_wait(steps, e, static_cast<way>(end));
    }

    /// Do all ranks expect what they are sent? Throws on all of them if not. Returns the number of lanes of all ranks.
    [[nodiscard]] int agree(const std::vector<exchange_pieces>& pieces) const {
      const std::uint64_t basis = 0xcbf29ce484222325;  // FNV-1a, over whole numbers
      std::vector<std::uint64_t> sent(static_cast<std::size_t>(world->size()), basis);
      std::vector<std::uint64_t> expected = sent;
      const auto add = [&](std::uint64_t& digest, int lane, const std::vector<piece>& message) {
        const auto mix = [&](std::uint64_t number) { digest = (digest ^ number) * 0x100000001b3; };
        mix(static_cast<std::uint64_t>(lane));
        mix(message.size());
        for (const piece& one : message) mix(static_cast<std::uint64_t>(one.bytes));
      };
      // Messages of different lanes may be posted in another order than they are expected.
      int lanes = 1;
      for (const exchange& x : steps.exchanges) lanes = (std::max)(lanes, x.lane + 1);
      for (int lane = 0; lane < lanes; ++lane) {
        for (int e = 0; e < steps.exchanges.size(); ++e) {
          const exchange& x = steps.exchanges[e];
          const exchange_pieces& of_exchange = pieces[static_cast<std::size_t>(e)];
          if (x.lane != lane) continue;
          if (x.sent.count > 0) add(sent[static_cast<std::size_t>(x.to)], lane, of_exchange.sent);
          if (x.received.count > 0) add(expected[static_cast<std::size_t>(x.from)], lane, of_exchange.received);
        }
      }
      const std::vector<std::uint64_t> arriving = world->all_to_all(sent);
      std::string wrong;
      for (std::size_t from = 0; from < arriving.size() && wrong.empty(); ++from) {
        if (arriving[from] == expected[from]) continue;
        wrong = "rank " + std::to_string(from) + " sends to rank " + std::to_string(world->rank()) +
                " other messages than that expects: their number, their lanes or their sizes differ";
      }
      int all_lanes = lanes;
      for (const std::string& of_rank : world->all_gather(std::to_string(lanes) + " " + wrong)) {
        const std::size_t space = of_rank.find(' ');
        if (space + 1 < of_rank.size()) throw transport_error{"orrery: " + of_rank.substr(space + 1) + world_is_usable};
        all_lanes = (std::max)(all_lanes, std::stoi(of_rank));
      }
      return all_lanes;
    }
  };

  std::unique_ptr<plan> plan_;
};

/// One rank of an MPI job, or of any part of it. See `transport`.
///
///     orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 30}};
///     orrery::attention<orrery::wallfacer<2>, orrery::flash<float>> attend{world, shape, orrery::causal{}};
///
/// The communicator is duplicated, so that no message is mistaken for one of the trainer's; it must outlive neither the
/// world nor its operators. Only the thread that makes the world may use it, and MPI must have been initialised with
/// MPI_THREAD_FUNNELED (MPI_THREAD_SINGLE will do with one thread a rank).
///
/// An exchange costs one message each way, whatever number of blocks it holds. While a tile is computed, MPI is called
/// every `progress_interval`. Collectives that programs remark are sent message by message.
///
/// All members but `rank` and `size` are collective. They throw `transport_error`, naming the MPI call or what was
/// waited for, if an MPI call fails, if a rank does not come before the deadline, or if another rank has failed, with
/// its sentence; `std::logic_error` when called from another thread. After a `transport_error` this world cannot be
/// used any more, and messages may be left in it that nobody takes: end the job (MPI_Abort), or go on without this
/// world.
///
/// When a process has died or been stopped, the others throw after the deadline; MPI itself promises nothing from then
/// on. Whatever may wait for the dead rank hangs: MPI_Finalize, and every collective call on the trainer's own
/// communicators. Write down the sentence, and leave by MPI_Abort or _exit. Another world can be made of the survivors
/// only where the MPI library has fault tolerance (MPIX_Comm_shrink) and was started with it. Most launchers end all
/// ranks as soon as one has died, so that survivors have no time for a sentence; OpenMPI's leaves them alone with
/// `mpirun --enable-recovery` (4.1.4; the launcher of MPICH 4.0.2 does not, even with `-disable-auto-cleanup`).
class world {
 public:
  using memory = host_memory;

  /// Throws `std::invalid_argument` if MPI is not initialised, for a communicator that is null or an intercommunicator,
  /// for options that make no sense and for more threads than MPI was initialised for.
  explicit world(MPI_Comm parent, const options& how = {})
      : own_{std::make_shared<communicator>(parent, how)}, exceptions_{std::uncaught_exceptions()} {}
  world(const world&) = delete;
  world& operator=(const world&) = delete;
  /// Collective, but for a rank that leaves by an exception: the others then fail when they next wait, with its name.
  ~world() {
    if (std::uncaught_exceptions() <= exceptions_ || own_->failed()) return;
    try {
      own_->give_notice("rank " + std::to_string(rank()) + " has ended by an exception");
    } catch (...) {  // out of memory: the others have their deadline
    }
  }

  [[nodiscard]] int rank() const noexcept { return own_->rank(); }
  [[nodiscard]] int size() const noexcept { return own_->size(); }

  /// False after a failure, this rank's or one that another has told of: from then on every other member throws its
  /// sentence. Not collective. Looks for such news, once.
  [[nodiscard]] bool usable() { return own_->usable(); }

  /// Returns when all ranks have called it.
  void barrier() { own_->barrier(); }

  /// The texts of all ranks. Together at most 2 GiB.
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text) { return own_->all_gather(text); }

  /// Replaces the values of all ranks by their sums, added in the order of the ranks: every rank gets the same bits.
  /// All ranks give equally many values. Each rank adds a part of them: 2 (P - 1) / P of the bytes are sent, and up to
  /// 16 MiB taken for a while.
  template <class T>
  void all_reduce_sum(std::span<T> values) {
    static_assert(std::is_trivially_copyable_v<T>, "orrery: all_reduce_sum: the values are sent as bytes");
    constexpr std::size_t most = (std::size_t{8} << 20) / sizeof(T);
    own_->enter();
    for (std::size_t at = 0; at < values.size(); at += most) {
      sum_part(values.subspan(at, (std::min)(most, values.size() - at)));
    }
  }

  /// Costs two small collective calls, and one persistent request for each side of each exchange. Throws
  /// `transport_error` on all ranks if a rank sends what its peer does not expect.
  [[nodiscard]] channel open(const program& p, const std::vector<exchange_pieces>& pieces) {
    own_->enter();
    own_->start_team();
    return {own_, p, pieces};
  }

 private:
  template <class T>
  void sum_part(std::span<T> values) {
    struct buffers {
      std::vector<std::byte> mine, of_all, sums;
      std::vector<int> send_counts, send_offsets, counts, offsets;
    };
    const auto ranks = static_cast<std::size_t>(size());
    const auto kept = communicator::keep<buffers>();
    const auto bytes_before = [&](std::size_t r) { return static_cast<int>(values.size() * r / ranks * sizeof(T)); };
    const auto me = static_cast<std::size_t>(rank());
    const int part = bytes_before(me + 1) - bytes_before(me);
    const auto part_size = static_cast<std::size_t>(part);
    for (std::size_t r = 0; r < ranks; ++r) {
      kept->send_offsets.push_back(bytes_before(r));
      kept->send_counts.push_back(bytes_before(r + 1) - bytes_before(r));
      kept->offsets.push_back(part * static_cast<int>(r));
      kept->counts.push_back(part);
    }
    kept->mine.resize(values.size_bytes());
    std::memcpy(kept->mine.data(), values.data(), values.size_bytes());
    kept->of_all.resize(part_size * ranks);
    MPI_Request request = MPI_REQUEST_NULL;
    own_->check(
        MPI_Ialltoallv(kept->mine.data(), kept->send_counts.data(), kept->send_offsets.data(), MPI_BYTE,
                       kept->of_all.data(), kept->counts.data(), kept->offsets.data(), MPI_BYTE, own_->get(), &request),
        "MPI_Ialltoallv", communicator::nothing);
    own_->wait(request, "MPI_Ialltoallv", communicator::for_all);

    kept->sums.resize(part_size);
    for (std::size_t at = 0; at < part_size; at += sizeof(T)) {
      T sum{};
      for (std::size_t r = 0; r < ranks; ++r) {
        T value;
        std::memcpy(&value, kept->of_all.data() + r * part_size + at, sizeof(T));
        sum += value;
      }
      std::memcpy(kept->sums.data() + at, &sum, sizeof(T));
    }
    own_->check(MPI_Iallgatherv(kept->sums.data(), part, MPI_BYTE, kept->mine.data(), kept->send_counts.data(),
                                kept->send_offsets.data(), MPI_BYTE, own_->get(), &request),
                "MPI_Iallgatherv", communicator::nothing);
    own_->wait(request, "MPI_Iallgatherv", communicator::for_all);
    std::memcpy(values.data(), kept->mine.data(), values.size_bytes());
    communicator::forget(kept);
  }

  std::shared_ptr<communicator> own_;
  int exceptions_;
};

static_assert(transport<world>);

}  // namespace orrery::mpi
