// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/kernel/device_context.hpp"
#include "orrery/transport/deadline.hpp"
#include "orrery/transport/device_objects.hpp"
#include "orrery/transport/transport.hpp"

/// Ranks that are members of an NCCL communicator: one process, or thread, for each GPU.
namespace orrery::nccl {

struct options {
  /// How long the host waits for NCCL, in seconds, before the rank aborts its communicators and fails with a sentence.
  double deadline = 60;
  /// Use ncclAllGather for what programs remark as an all-gather, where all its blocks have one size: it needs memory
  /// for the gathered blocks in a row, and a copy of each to its slot. Otherwise, and for all else, grouped sends and
  /// receives between the slots themselves, which is what NCCL's own all-to-all consists of.
  bool native_all_gather = true;
};

/// NCCL's words for a result.
[[nodiscard]] inline std::string describe(ncclResult_t result) { return ncclGetErrorString(result); }

/// One communicator of this rank's own, not blocking. Aborted, not destroyed, if it has failed or never began.
class communicator {
 public:
  communicator() = default;
  communicator(communicator&& other) noexcept : comm_{std::exchange(other.comm_, nullptr)} {}
  communicator& operator=(communicator&& other) noexcept {
    std::swap(comm_, other.comm_);
    return *this;
  }
  ~communicator() {
    if (comm_ != nullptr) static_cast<void>(ncclCommDestroy(comm_));
  }
  [[nodiscard]] ncclComm_t get() const noexcept { return comm_; }
  [[nodiscard]] ncclComm_t* address() noexcept { return &comm_; }
  void abort() noexcept {
    if (comm_ != nullptr) static_cast<void>(ncclCommAbort(std::exchange(comm_, nullptr)));
  }

 private:
  ncclComm_t comm_ = nullptr;
};

[[nodiscard]] inline ncclConfig_t not_blocking() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  return config;
}

/// Waits until `comm` is done with what it has begun. Empty, or what has failed; `call` is its name.
[[nodiscard]] inline std::string wait_for(ncclComm_t comm, ncclResult_t result, const char* call,
                                          std::chrono::steady_clock::time_point deadline) {
  while (result == ncclInProgress || result == ncclSuccess) {
    const bool begun = result == ncclInProgress;
    if (!begun) return "";
    if (std::chrono::steady_clock::now() >= deadline) {
      return std::string{call} + " is not done before the deadline: another rank has not come to it";
    }
    std::this_thread::yield();
    if (const ncclResult_t asked = ncclCommGetAsyncError(comm, &result); asked != ncclSuccess) result = asked;
  }
  return std::string{call} + " failed: " + describe(result);
}

/// The world's own communicators, made from the trainer's by ncclCommSplit: one for agreements at plan time, one for
/// each lane, so that lanes do not wait for each other, and one for each set of groups whose collectives are native.
/// Each has a stream; shared by the world and its channels.
class communicators {
 public:
  struct line {
    cuda_stream stream;
    communicator comm;
  };

  communicators(ncclComm_t parent, cudaStream_t compute, const options& how)
      : parent_{parent}, compute_{compute}, options_{how} {
    if (const std::string wrong = what_is_wrong_with(how.deadline, 1); !wrong.empty()) refuse("options: " + wrong);
    if (parent == nullptr) refuse("world: the communicator is null; make one by ncclCommInitRank or nccl::join");
    check(ncclCommUserRank(parent, &rank_), "ncclCommUserRank", nowhere);
    check(ncclCommCount(parent, &size_), "ncclCommCount", nowhere);
    check(ncclCommCuDevice(parent, &device_), "ncclCommCuDevice", nowhere);
    make_current();
    control_ = split(0, rank_);
  }
  communicators(const communicators&) = delete;
  communicators& operator=(const communicators&) = delete;
  ~communicators() {
    // A communicator is destroyed when its work is done, and aborted if that does not end.
    bool ended = true;
    for_each([&](line& one) { ended = ended && idle(one.stream.get()); });
    if (!ended) abort();
  }

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] cudaStream_t compute() const noexcept { return compute_; }
  [[nodiscard]] const options& how() const noexcept { return options_; }
  [[nodiscard]] bool failed() const noexcept { return failed_; }
  void make_current() const { check_cuda(cudaSetDevice(device_), "cudaSetDevice"); }

  /// Throws if the world has failed, or NCCL says that one of its communicators has.
  void enter(const char* doing) {
    if (failed_) throw_failure();
    ncclResult_t worst = ncclSuccess;
    for_each([&](const line& one) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t asked = ncclCommGetAsyncError(one.comm.get(), &state);
      if (asked != ncclSuccess) state = asked;
      if (state != ncclSuccess && state != ncclInProgress) worst = state;
    });
    if (worst != ncclSuccess) {
      fail("NCCL has failed on rank " + std::to_string(rank_) + ", " + doing + ": " + describe(worst));
    }
    make_current();
  }

  /// Aborts everything, waits until the streams have noticed, and throws; `why` is a clause.
  [[noreturn]] void fail(const std::string& why) {
    give_up(why);
    throw_failure();
  }
  /// The same without throwing.
  void give_up(const std::string& why) {
    if (failed_) return;
    failed_ = true;
    failure_ = "orrery: rank " + std::to_string(rank_) + " stops: " + why +
               "; its communicators are aborted, and this world cannot be used any more";
    abort();
  }

  static std::string nowhere() { return ""; }

  /// Throws unless the call has succeeded; `where`, called only then, says in which step, for what.
  template <class Where>
  void check(ncclResult_t result, const char* call, const Where& where) {
    if (result == ncclSuccess) return;
    const std::string place = where();
    fail(std::string{call} + " failed on rank " + std::to_string(rank_) + (place.empty() ? "" : " " + place) + ": " +
         describe(result));
  }
  /// The same for a call on a communicator that does not block: waits until it is done.
  template <class Where>
  void finish(ncclComm_t comm, ncclResult_t result, const char* call, const Where& where) {
    if (result == ncclSuccess) return;
    const std::string wrong = wait_for(comm, result, call, deadline_in(options_.deadline));
    if (wrong.empty()) return;
    const std::string place = where();
    fail(wrong + (place.empty() ? "" : ", " + place));
  }

  /// Waits until all that is on the stream is done, up to the deadline.
  void synchronize(cudaStream_t stream, const std::string& what) {
    const auto deadline = deadline_in(options_.deadline);
    for (;;) {
      const cudaError_t state = cudaStreamQuery(stream);
      if (state == cudaSuccess) return;
      if (state != cudaErrorNotReady) check_cuda(state, "cudaStreamQuery");
      ignore_cuda(state);
      enter(what.c_str());
      if (std::chrono::steady_clock::now() >= deadline) {
        fail("rank " + std::to_string(rank_) + " has waited " + describe_seconds(options_.deadline) + " " + what);
      }
      std::this_thread::yield();
    }
  }

  /// The texts of all ranks, over the device: their sizes, then all of them padded to the largest.
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text) {
    enter("at a collective call");
    const auto mine = static_cast<std::uint64_t>(text.size());
    std::vector<std::uint64_t> sizes(static_cast<std::size_t>(size_));
    gather(&mine, sizes.data(), sizeof(mine));
    const std::uint64_t most = *std::max_element(sizes.begin(), sizes.end());
    std::vector<char> padded(most);
    std::vector<char> all(most * sizes.size());
    std::copy(text.begin(), text.end(), padded.begin());
    if (most > 0) gather(padded.data(), all.data(), most);
    std::vector<std::string> texts;
    for (std::size_t r = 0; r < sizes.size(); ++r) texts.emplace_back(all.data() + r * most, sizes[r]);
    return texts;
  }

  /// The lane's line. Collective if there is none yet.
  [[nodiscard]] line& lane(int number) {
    const auto found = lanes_.find(number);
    return found != lanes_.end() ? found->second : lanes_.emplace(number, split(0, rank_)).first->second;
  }
  /// The line of the groups of `ranks` ranks, `stride` apart, of which this rank's begins at `first`; `first` < 0: it
  /// is in none of them. Collective if there is none yet.
  [[nodiscard]] line& groups(int ranks, int stride, int first) {
    const std::pair<int, int> shape{ranks, stride};
    const auto found = groups_.find(shape);
    if (found != groups_.end()) return found->second;
    return groups_.emplace(shape, split(first < 0 ? NCCL_SPLIT_NOCOLOR : first, rank_)).first->second;
  }

 private:
  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: nccl::" + why}; }

  [[noreturn]] void throw_failure() const { throw transport_error{failure_}; }

  [[nodiscard]] line split(int color, int key) {
    line made;
    ncclConfig_t config = not_blocking();
    const ncclResult_t result = ncclCommSplit(parent_, color, key, made.comm.address(), &config);
    const auto deadline = deadline_in(options_.deadline);
    std::string wrong = result == ncclSuccess || result == ncclInProgress
                            ? wait_for(parent_, result, "ncclCommSplit", deadline)
                            : "ncclCommSplit failed: " + describe(result);
    if (wrong.empty() && made.comm.get() != nullptr) {
      wrong = wait_for(made.comm.get(), ncclInProgress, "ncclCommSplit", deadline);
    }
    if (!wrong.empty()) {
      made.comm.abort();
      fail(wrong);
    }
    return made;
  }

  void gather(const void* mine, void* of_all, std::size_t bytes) {
    const device_memory sent{static_cast<std::int64_t>(bytes)};
    const device_memory received{static_cast<std::int64_t>(bytes) * size_};
    const cudaStream_t stream = control_.stream.get();
    check_cuda(cudaMemcpyAsync(sent.data(), mine, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    finish(control_.comm.get(),
           ncclAllGather(sent.data(), received.data(), bytes, ncclUint8, control_.comm.get(), stream), "ncclAllGather",
           nowhere);
    const std::string what = "for all ranks to come to the same collective call";
    synchronize(stream, what);
    check_cuda(cudaMemcpyAsync(of_all, received.data(), bytes * static_cast<std::size_t>(size_), cudaMemcpyDeviceToHost,
                               stream),
               "cudaMemcpyAsync");
    synchronize(stream, what);
  }

  template <class Visit>
  void for_each(const Visit& visit) {
    const auto one = [&](line& of) {
      if (of.comm.get() != nullptr) visit(of);
    };
    one(control_);
    for (auto& [number, of] : lanes_) one(of);
    for (auto& [group, of] : groups_) one(of);
  }
  /// What is under way ends then: its memory may be given back.
  void abort() noexcept {
    for_each([](line& one) { one.comm.abort(); });
    static_cast<void>(idle(control_.stream.get()));
    for (auto& [number, one] : lanes_) static_cast<void>(idle(one.stream.get()));
    for (auto& [group, one] : groups_) static_cast<void>(idle(one.stream.get()));
  }
  [[nodiscard]] bool idle(cudaStream_t stream) const noexcept {
    const auto deadline = deadline_in(options_.deadline);
    cudaError_t state = cudaErrorNotReady;
    while ((state = cudaStreamQuery(stream)) == cudaErrorNotReady && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    ignore_cuda(state);
    return state == cudaSuccess;
  }

  ncclComm_t parent_;
  cudaStream_t compute_;
  options options_;
  int rank_ = 0;
  int size_ = 1;
  int device_ = 0;
  line control_{};
  std::map<int, line> lanes_;
  std::map<std::pair<int, int>, line> groups_;
  bool failed_ = false;
  std::string failure_;
};

/// One rank's end of a plan. See `transport_channel`.
///
/// The exchanges of one step and lane are one group of NCCL's, on the lane's communicator and stream, issued when the
/// last of them is posted: it runs after what the compute stream was given before, and what the compute stream is given
/// after `await` runs after it.
class channel {
 public:
  channel(std::shared_ptr<communicators> world, const program& p, std::vector<exchange_pieces> pieces)
      : plan_{std::make_unique<plan>(std::move(world), p, std::move(pieces))} {}

  void begin() {
    plan_->world->enter("beginning a call");
    if (plan_->begun && plan_->awaited != plan_->steps.exchanges.size()) {
      plan_->world->fail("rank " + std::to_string(plan_->world->rank()) +
                         " begins a call, but has left its last one in the middle");
    }
    plan_->begun = true;
    plan_->awaited = 0;
  }
  void post(int e) {
    plan::burst& of = *plan_->burst_of[static_cast<std::size_t>(e)];
    if (of.exchanges.back() == e) plan_->issue(of);
  }
  void await(int e) {
    plan_->burst_of[static_cast<std::size_t>(e)]->done.order(plan_->world->compute());
    ++plan_->awaited;
  }
  void abandon(const std::string& why) {
    plan_->world->give_up("rank " + std::to_string(plan_->world->rank()) + " failed " + why);
  }

  [[nodiscard]] device_context context() const noexcept { return {plan_->world->compute()}; }

 private:
  struct plan {
    /// Exchanges that are one call of NCCL's.
    struct burst {
      std::vector<int> exchanges;
      communicators::line* line = nullptr;
      cuda_event ready;
      cuda_event done;
      // Of a native all-gather: its blocks in the order of the group's ranks, and each rank's exchange (-1: this
      // rank's).
      bool native = false;
      device_memory gathered;
      std::vector<int> from_rank;
    };

    std::shared_ptr<communicators> world;
    program steps;
    std::vector<exchange_pieces> pieces;
    std::vector<std::unique_ptr<burst>> bursts;
    std::vector<burst*> burst_of;  // each exchange
    bool begun = false;
    int awaited = 0;  // exchanges of this call

    plan(std::shared_ptr<communicators> on, const program& p, std::vector<exchange_pieces> where)
        : world{std::move(on)}, steps{p}, pieces{std::move(where)}, burst_of(pieces.size(), nullptr) {
      agree();
      for (int c = 0; c < steps.collectives.size(); ++c) {
        const collective& one = steps.collectives[c];
        if (gathers_alike(one)) add_native(one);
      }
      std::map<std::pair<int, int>, burst*> by_step_and_lane;
      for (int e = 0; e < steps.exchanges.size(); ++e) {
        if (burst_of[static_cast<std::size_t>(e)] != nullptr) continue;
        const exchange& x = steps.exchanges[e];
        burst*& of = by_step_and_lane[{x.posted, x.lane}];
        if (of == nullptr) {
          of = bursts.emplace_back(std::make_unique<burst>()).get();
          of->line = &world->lane(x.lane);
        }
        of->exchanges.push_back(e);
        burst_of[static_cast<std::size_t>(e)] = of;
      }
    }
    plan(const plan&) = delete;
    plan& operator=(const plan&) = delete;
    /// What is under way ends, or is aborted at the deadline, before its memory is gone.
    ~plan() {
      try {
        if (!world->failed()) world->synchronize(world->compute(), "for a plan's last call to end");
        for (const auto& one : bursts) {
          if (!world->failed()) world->synchronize(one->line->stream.get(), "for a plan's last exchange to end");
        }
      } catch (const std::exception&) {  // aborted: it ends
      }
      if (!world->failed()) return;
      ignore_cuda(cudaStreamSynchronize(world->compute()));
      for (const auto& one : bursts) ignore_cuda(cudaStreamSynchronize(one->line->stream.get()));
    }

    [[nodiscard]] std::string where(int e, way w) const { return describe_wait(steps, e, w); }

    void issue(burst& of) {
      const cudaStream_t stream = of.line->stream.get();
      const ncclComm_t comm = of.line->comm.get();
      of.ready.record(world->compute());
      of.ready.order(stream);
      if (of.native) {
        const piece& own = pieces[static_cast<std::size_t>(of.exchanges[0])].sent[0];
        const auto bytes = static_cast<std::size_t>(own.bytes);
        world->finish(comm, ncclAllGather(own.data, of.gathered.data(), bytes, ncclUint8, comm, stream),
                      "ncclAllGather", [&] { return where(of.exchanges[0], way::receiving); });
        for (std::size_t r = 0; r < of.from_rank.size(); ++r) {
          if (of.from_rank[r] < 0) continue;
          check_cuda(cudaMemcpyAsync(pieces[static_cast<std::size_t>(of.from_rank[r])].received[0].data,
                                     of.gathered.data() + r * bytes, bytes, cudaMemcpyDeviceToDevice, stream),
                     "cudaMemcpyAsync");
        }
      } else {
        world->check(ncclGroupStart(), "ncclGroupStart", communicators::nowhere);
        ncclResult_t first = ncclSuccess;
        int failing = of.exchanges[0];
        way failing_way = way::sending;
        const auto keep = [&](ncclResult_t result, int e, way w) {
          if (first != ncclSuccess || result == ncclSuccess || result == ncclInProgress) return;
          first = result;
          failing = e;
          failing_way = w;
        };
        for (const int e : of.exchanges) {
          const exchange& x = steps.exchanges[e];
          for (const piece& one : pieces[static_cast<std::size_t>(e)].sent) {
            if (one.bytes == 0) continue;
            keep(ncclSend(one.data, static_cast<std::size_t>(one.bytes), ncclUint8, x.to, comm, stream), e,
                 way::sending);
          }
          for (const piece& one : pieces[static_cast<std::size_t>(e)].received) {
            if (one.bytes == 0) continue;
            keep(ncclRecv(one.data, static_cast<std::size_t>(one.bytes), ncclUint8, x.from, comm, stream), e,
                 way::receiving);
          }
        }
        const ncclResult_t ended = ncclGroupEnd();
        world->check(first, failing_way == way::sending ? "ncclSend" : "ncclRecv",
                     [&] { return where(failing, failing_way); });
        world->finish(comm, ended, "ncclGroupEnd", [&] {
          return where(failing, steps.exchanges[failing].received.count > 0 ? way::receiving : way::sending);
        });
      }
      of.done.record(stream);
    }

    /// Do all ranks expect what they are sent? Throws on all of them if not. Then makes, on all ranks in one order, the
    /// communicators that any of them needs.
    void agree() {
      std::ostringstream mine;
      std::set<int> lanes;
      for (int e = 0; e < steps.exchanges.size(); ++e) {
        const exchange& x = steps.exchanges[e];
        lanes.insert(x.lane);
        const auto message = [&](char kind, int peer, const std::vector<piece>& bytes) {
          mine << kind << ' ' << peer << ' ' << x.lane << ' ' << bytes.size();
          for (const piece& one : bytes) mine << ' ' << one.bytes;
          mine << '\n';
        };
        if (x.sent.count > 0) message('s', x.to, pieces[static_cast<std::size_t>(e)].sent);
        if (x.received.count > 0) message('r', x.from, pieces[static_cast<std::size_t>(e)].received);
      }
      for (const int lane : lanes) mine << "l " << lane << '\n';
      for (int c = 0; c < steps.collectives.size(); ++c) {
        const collective& one = steps.collectives[c];
        if (gathers_alike(one)) mine << "g " << one.ranks << ' ' << one.rank_stride << ' ' << one.first_rank << '\n';
      }
      const std::vector<std::string> all = world->all_gather(mine.str());

      // messages[from][to][lane]: what is sent, and what is expected, in order.
      std::map<std::tuple<int, int, int>, std::string> sent;
      std::map<std::tuple<int, int, int>, std::string> expected;
      std::set<int> all_lanes;
      std::map<std::pair<int, int>, std::set<int>> groups;
      for (int rank = 0; rank < static_cast<int>(all.size()); ++rank) {
        std::istringstream lines{all[static_cast<std::size_t>(rank)]};
        for (std::string line; std::getline(lines, line);) {
          std::istringstream words{line};
          char kind = 0;
          int a = 0;
          int b = 0;
          words >> kind >> a;
          if (kind == 'l') {
            all_lanes.insert(a);
            continue;
          }
          words >> b;
          if (kind == 'g') {
            int first = 0;
            words >> first;
            groups[{a, b}].insert(first);
            continue;
          }
          std::string sizes;
          std::getline(words, sizes);
          if (kind == 's') sent[{rank, a, b}] += sizes + ';';
          if (kind == 'r') expected[{a, rank, b}] += sizes + ';';
        }
      }
      const auto refuse_first_of = [](const auto& of, const auto& other) {
        for (const auto& [message, sizes] : of) {
          const auto found = other.find(message);
          if (found != other.end() && found->second == sizes) continue;
          throw transport_error{"orrery: rank " + std::to_string(std::get<0>(message)) + " sends to rank " +
                                std::to_string(std::get<1>(message)) +
                                " other messages than that expects: their number, their lanes or their sizes differ" +
                                world_is_usable};
        }
      };
      refuse_first_of(sent, expected);
      refuse_first_of(expected, sent);

      for (const int lane : all_lanes) static_cast<void>(world->lane(lane));
      for (const auto& [shape, firsts] : groups) {
        int mine_first = -1;
        for (const int first : firsts) {
          const int index = world->rank() - first;
          if (index >= 0 && index % shape.second == 0 && index / shape.second < shape.first) mine_first = first;
        }
        static_cast<void>(world->groups(shape.first, shape.second, mine_first));
      }
    }

    /// Is it an all-gather in which all blocks have one size, and each rank sends one piece to all others?
    [[nodiscard]] bool gathers_alike(const collective& c) const {
      if (!world->how().native_all_gather || c.kind != collective_kind::all_gather || c.ranks < 2) return false;
      if (c.exchanges.count != c.ranks - 1) return false;
      const exchange_pieces& first = pieces[static_cast<std::size_t>(c.exchanges.first)];
      if (first.sent.size() != 1 || first.sent[0].bytes == 0) return false;
      for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
        const exchange_pieces& one = pieces[static_cast<std::size_t>(e)];
        if (one.sent.size() != 1 || one.received.size() != 1 || one.sent[0].data != first.sent[0].data ||
            one.sent[0].bytes != first.sent[0].bytes || one.received[0].bytes != first.sent[0].bytes) {
          return false;
        }
      }
      return true;
    }

    void add_native(const collective& c) {
      burst& of = *bursts.emplace_back(std::make_unique<burst>());
      of.native = true;
      of.line = &world->groups(c.ranks, c.rank_stride, c.first_rank);
      of.gathered = device_memory{pieces[static_cast<std::size_t>(c.exchanges.first)].sent[0].bytes * c.ranks};
      of.from_rank.assign(static_cast<std::size_t>(c.ranks), -1);
      for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
        of.exchanges.push_back(e);
        burst_of[static_cast<std::size_t>(e)] = &of;
        of.from_rank[static_cast<std::size_t>((steps.exchanges[e].from - c.first_rank) / c.rank_stride)] = e;
      }
    }
  };

  std::unique_ptr<plan> plan_;
};

/// One rank of an NCCL communicator. See `transport`.
///
///     orrery::nccl::world world{comm, stream};  // the trainer's
///     orrery::attention<orrery::wallfacer<2>, orrery::device_flash<orrery::bfloat16>> attend{world, shape};
///
/// Calls enqueue on the trainer's stream and return; on this stream their results are there. The world makes
/// communicators of its own (see `communicators`) and issues nothing on the trainer's but ncclCommSplit, at plan time;
/// the trainer's communicator and stream outlive it. A host thread waits in a call only for NCCL to have enqueued, and
/// in `synchronize`, `barrier` and `all_gather`, up to the deadline; then, and when NCCL says that a communicator has
/// failed, it aborts its communicators, which ends what waits on the device, and throws `transport_error`. A trainer
/// that waits for its stream by `synchronize` does not hang when another rank is lost; one that waits by
/// cudaStreamSynchronize does. All members but `rank`, `size`, `stream` and `synchronize` are collective.
///
/// Lanes are communicators at work side by side: a GPU must have room for the kernels of all of them, or NCCL be told
/// to keep their order (NCCL_LAUNCH_ORDER_IMPLICIT=1, from 2.26 on). NCCL refuses two ranks on one GPU.
class world {
 public:
  using memory = device_memory;

  /// Throws `std::invalid_argument` for a communicator that is null or a deadline that is not positive, `device_error`
  /// and `transport_error`.
  world(ncclComm_t comm, cudaStream_t stream, const options& how = {})
      : own_{std::make_shared<communicators>(comm, stream, how)}, exceptions_{std::uncaught_exceptions()} {}
  world(const world&) = delete;
  world& operator=(const world&) = delete;
  /// Collective, but for a rank that leaves by an exception: that aborts.
  ~world() {
    if (std::uncaught_exceptions() > exceptions_) own_->give_up("it has ended by an exception");
  }

  [[nodiscard]] int rank() const noexcept { return own_->rank(); }
  [[nodiscard]] int size() const noexcept { return own_->size(); }
  [[nodiscard]] cudaStream_t stream() const noexcept { return own_->compute(); }
  /// False after a failure: from then on every other member throws its sentence.
  [[nodiscard]] bool usable() const noexcept { return !own_->failed(); }

  /// Waits until the trainer's stream has done all that is enqueued, or throws after the deadline.
  void synchronize() {
    own_->enter("waiting for its stream");
    own_->synchronize(own_->compute(), "for its stream: for a peer that has not come, or a kernel that does not end");
  }
  /// Returns when all ranks have called it.
  void barrier() { static_cast<void>(own_->all_gather("")); }
  /// The texts of all ranks. Takes device memory for them for a while.
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text) { return own_->all_gather(text); }

  /// Replaces the values of all ranks, in the memory of the host, by their sums, added in the order of the ranks: every
  /// rank gets the same bits. All ranks give equally many values; P times their bytes are received.
  template <class T>
  void all_reduce_sum(std::span<T> values) {
    static_assert(std::is_trivially_copyable_v<T>, "orrery: all_reduce_sum: the values are sent as bytes");
    std::string mine(values.size_bytes(), '\0');
    if (!mine.empty()) std::memcpy(mine.data(), values.data(), mine.size());
    const std::vector<std::string> all = own_->all_gather(mine);
    for (const std::string& one : all) {
      if (one.size() != mine.size()) {
        throw std::invalid_argument{
            "orrery: all_reduce_sum: ranks give different numbers of values; give equally many"};
      }
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      T sum{};
      for (const std::string& one : all) {
        T value;
        std::memcpy(&value, one.data() + i * sizeof(T), sizeof(T));
        sum += value;
      }
      values[i] = sum;
    }
  }

  /// Throws `transport_error` on all ranks if a rank sends what its peer does not expect. Costs a communicator for each
  /// lane, and each set of groups of native collectives, that no plan had before; two events for each step and lane.
  [[nodiscard]] channel open(const program& p, std::vector<exchange_pieces> pieces) {
    own_->enter("opening a plan");
    return {own_, p, std::move(pieces)};
  }

 private:
  std::shared_ptr<communicators> own_;
  int exceptions_;
};

static_assert(transport<world>);

/// A new communicator of `size` ranks on the calling thread's current device, not blocking: collective. Rank 0 makes
/// the id by ncclGetUniqueId and gives it to the others (by MPI, a file, a socket). Throws `transport_error` if not all
/// have come before the deadline.
[[nodiscard]] inline communicator join(const ncclUniqueId& id, int rank, int size, double deadline = 60) {
  communicator made;
  ncclConfig_t config = not_blocking();
  const ncclResult_t result = ncclCommInitRankConfig(made.address(), size, id, rank, &config);
  const std::string wrong = wait_for(made.get(), result, "ncclCommInitRankConfig", deadline_in(deadline));
  if (!wrong.empty()) {
    made.abort();
    throw transport_error{"orrery: rank " + std::to_string(rank) + " of " + std::to_string(size) + ": " + wrong};
  }
  return made;
}

}  // namespace orrery::nccl
