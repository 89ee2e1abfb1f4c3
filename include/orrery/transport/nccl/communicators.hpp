// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"
#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/detail/failure_state.hpp"
#include "orrery/transport/nccl/communicator.hpp"
#include "orrery/transport/nccl/lane_communicators.hpp"
#include "orrery/transport/nccl/reclamation.hpp"
#include "orrery/transport/nccl/watchdog.hpp"
#include "orrery/transport/nccl_options.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::nccl {

/// The communicators of a world (see `lane_communicators`) and the failure of that world. Shared by the world and its
/// channels. A failure aborts all communicators, and is then what every call throws. For one thread at a time, beside
/// the watchdog.
class communicators {
 public:
  communicators(ncclComm_t parent, cudaStream_t compute, const options& options)
      : compute_{compute}, options_{options} {
    if (const std::string wrong = options_error(options); !wrong.empty()) refuse("options: " + wrong);
    if (parent == nullptr) refuse("world: the communicator is null; make one by ncclCommInitRank or nccl::join");
    check(ncclCommUserRank(parent, &rank_), "ncclCommUserRank", nowhere);
    check(ncclCommCount(parent, &size_), "ncclCommCount", nowhere);
    check(ncclCommCuDevice(parent, &device_), "ncclCommCuDevice", nowhere);
    make_current();
    compare_devices();
    lane_communicators_.control = lane_communicator{};  // its stream is of this device
    const std::string wrong =
        split_with_timeout::make(parent, rank_, options.max_ctas, device_, detail::deadline_in(options.deadline),
                                 lane_communicators_.control.comm);
    if (!wrong.empty()) fail("rank " + std::to_string(rank_) + " makes a communicator, and " + wrong);
    if (options.watchdog_period <= 0) return;
    timers_ = std::make_unique<call_timers>(options.deadline);
    const std::chrono::duration<double> period{(std::min)(options.deadline / 4, options.watchdog_period)};
    watchdog_ = std::make_unique<watchdog>(period, device_, [this] { return check_once(); });
  }
  communicators(const communicators&) = delete;
  communicators& operator=(const communicators&) = delete;
  ~communicators() {
    watchdog_.reset();
    // Communicators are destroyed when their work is done, and aborted if it does not end.
    bool ended = true;
    lane_communicators_.each(
        [&](lane_communicator& comm) { ended = ended && becomes_idle(comm.stream.get(), options_.deadline); });
    if (!ended) give_up("its last call does not end");
    if (failed()) settle();
    reclamation_.destroy(lane_communicators_.handles(), device_);
    lane_communicators_.release();
    reclamation_.wait(detail::deadline_in(options_.deadline));  // longer only while a graph lives
  }

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] cudaStream_t compute() const noexcept { return compute_; }
  [[nodiscard]] const options& get_options() const noexcept { return options_; }
  [[nodiscard]] bool failed() const noexcept { return failure_.happened(); }

  /// Holds the lock of the communicators: while it lives, the calling thread, which must be the rank's own, may call
  /// NCCL. May be nested.
  class comm_guard {
   public:
    explicit comm_guard(communicators& world) : world_{&world} {
      if (world_->depth_++ == 0) world_->comm_lock_.lock();
    }
    comm_guard(const comm_guard&) = delete;
    comm_guard& operator=(const comm_guard&) = delete;
    ~comm_guard() {
      if (--world_->depth_ == 0) world_->comm_lock_.unlock();
    }

   private:
    communicators* world_;
  };

  /// A group of calls submitted to NCCL, which a thread of NCCL enqueues while the rank's own thread continues.
  class pending_calls {
   public:
    /// Waits until the calls are enqueued.
    virtual void finish() = 0;

   protected:
    ~pending_calls() = default;
  };
  /// Lets the rank continue while NCCL enqueues the calls, until `finish_pending`. That is called before the rank needs
  /// the calls to be enqueued, and before it calls NCCL again. During capture it waits at once, since several threads
  /// must not use a graph at the same time.
  void defer(pending_calls& some) {
    pending_ = &some;
    if (capturing_) finish_pending();
  }
  void finish_pending() {
    if (pending_ == nullptr) return;
    const comm_guard guard{*this};
    go_on();
    std::exchange(pending_, nullptr)->finish();
  }

  /// Throws the failure's message if the world has failed.
  void go_on() {
    if (failed()) throw_failure();
  }
  /// Marks the begin of a call on the compute stream, for the watchdog. Captured calls are not watched: they do not run
  /// now.
  void call_begins(const watched_call* call) {
    const comm_guard guard{*this};
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    detail::check_cuda(cudaStreamIsCapturing(compute_, &status), "cudaStreamIsCapturing");
    capturing_ = status != cudaStreamCaptureStatusNone;
    timing_ = timers_ != nullptr && !capturing_;
    if (timing_) timers_->begin(compute_, call);
  }
  /// Tells the watchdog that the host makes progress in the call.
  void call_goes_on() noexcept {
    if (timers_ != nullptr) timers_->go_on();
  }
  void call_ends() {
    if (!timing_) return;
    const comm_guard guard{*this};
    timers_->end(compute_);
    timing_ = false;
  }
  void forget(const watched_call* call, const pending_calls* pending) {
    const comm_guard guard{*this};
    if (timers_ != nullptr) timers_->forget(call);
    if (pending_ == pending) pending_ = nullptr;
  }

  void make_current() const { detail::check_cuda(cudaSetDevice(device_), "cudaSetDevice"); }

  /// Throws if the world has failed, or if NCCL reports that one of its communicators has.
  void enter(const std::string& doing = "") {
    go_on();
    {
      const comm_guard guard{*this};
      if (const ncclResult_t worst = lane_communicators_.worst_state(); worst != ncclSuccess)
        fail(failure_of_nccl(worst, doing));
    }
    make_current();
  }

  /// Aborts all communicators, waits until the streams are idle, and throws. `why` is a clause.
  [[noreturn]] void fail(const std::string& why) {
    give_up(why);
    throw_failure();
  }
  /// Like `fail`, without throwing.
  void give_up(const std::string& why) {
    {
      const comm_guard guard{*this};
      abort(why);
    }
    settle();
  }

  static std::string nowhere() { return ""; }

  /// Throws unless the call has succeeded. `where()` says in which step, and for what; it is called for an error
  /// message only.
  template <class Where>
  void check(ncclResult_t result, const char* call, const Where& where) {
    if (result == ncclSuccess) return;
    const std::string place = where();
    fail(std::string{call} + " failed on rank " + std::to_string(rank_) + (place.empty() ? "" : " " + place) + ": " +
         describe(result));
  }
  /// Waits until a call on a nonblocking communicator is complete, and throws as `check` does.
  template <class Where>
  void finish(ncclComm_t comm, ncclResult_t result, const char* call, const Where& where) {
    if (result == ncclSuccess) return;
    const std::string wrong = wait_for(comm, result, call, detail::deadline_in(options_.deadline));
    if (wrong.empty()) return;
    const std::string place = where();
    fail(wrong + (place.empty() ? "" : ", " + place));
  }

  /// Waits until the stream is idle, up to the deadline. `what` describes what it waits for; null: the calls on the
  /// stream.
  void synchronize(cudaStream_t stream, const char* purpose = nullptr) {
    const auto deadline = detail::deadline_in(options_.deadline);
    for (;;) {
      const cudaError_t state = cudaStreamQuery(stream);
      if (state == cudaSuccess) return;
      if (detail::is_sticky(state)) give_up("rank " + std::to_string(rank_) + " has lost its device");
      if (state != cudaErrorNotReady) detail::check_cuda(state, "cudaStreamQuery");
      detail::ignore_cuda(state);
      enter(purpose != nullptr ? std::string{"waiting "} + purpose : "");
      if (std::chrono::steady_clock::now() >= deadline) fail(who_waits(purpose));
      std::this_thread::yield();
    }
  }

  /// Returns the texts of all ranks. First exchanges and compares the signatures and sizes of the texts, then exchanges
  /// the texts, padded to the largest. Throws `std::invalid_argument` on all ranks if only the arguments of their calls
  /// differ; fails the world if they make different calls.
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text, detail::collective_signature call) {
    enter("at a collective call");
    call.sequence = collective_calls_++;
    constexpr std::size_t header = detail::collective_signature::size + sizeof(std::uint64_t);
    const auto ranks = static_cast<std::size_t>(size_);
    std::array<std::byte, header> local{};
    const auto signature = call.serialize();
    const auto my_size = static_cast<std::uint64_t>(text.size());
    std::copy(signature.begin(), signature.end(), local.begin());
    std::memcpy(local.data() + signature.size(), &my_size, sizeof(my_size));
    std::vector<std::byte> headers(header * ranks);
    gather(local.data(), headers.data(), header);

    std::vector<detail::collective_signature> calls(ranks);
    std::vector<std::uint64_t> sizes(ranks);
    for (std::size_t r = 0; r < ranks; ++r) {
      const std::span of_rank = std::span{headers}.subspan(header * r, header);
      if (!detail::collective_signature::parse(of_rank.first(detail::collective_signature::size), calls[r])) {
        fail("rank " + std::to_string(r) + " comes to a collective call with a malformed signature");
      }
      std::memcpy(&sizes[r], of_rank.data() + detail::collective_signature::size, sizeof(sizes[r]));
    }
    detail::require_same_call(calls, [this](const std::string& why) { fail(why); });

    return gather_texts(text, sizes);
  }

  /// The communicator of a lane. Collective at the first call.
  [[nodiscard]] lane_communicator& lane(int number) {
    const comm_guard guard{*this};
    return lane_communicators_.lane(number, [this](int color) { return split_off(color); });
  }
  /// The communicator of the groups of `ranks` ranks that are `stride` apart. The group of this rank begins at `first`;
  /// `first` < 0 if the rank is in none of them. Collective at the first call.
  [[nodiscard]] lane_communicator& groups(int ranks, int stride, int first) {
    const comm_guard guard{*this};
    return lane_communicators_.groups(ranks, stride, first, [this](int color) { return split_off(color); });
  }

 private:
  static constexpr std::uint64_t most_bytes = std::uint64_t{1} << 40;  // of one rank's text; a larger size is invalid

  /// The second half of `all_gather`. If this rank cannot complete it, fails the world.
  [[nodiscard]] std::vector<std::string> gather_texts(const std::string& text,
                                                      const std::vector<std::uint64_t>& sizes) try {
    const std::uint64_t most = *std::max_element(sizes.begin(), sizes.end());
    if (most > most_bytes) fail("the texts of a collective call have up to " + std::to_string(most) + " bytes");
    std::vector<char> padded(most);
    std::vector<char> all(most * sizes.size());
    std::copy(text.begin(), text.end(), padded.begin());
    if (most > 0) gather(padded.data(), all.data(), most);
    std::vector<std::string> texts;
    for (std::size_t r = 0; r < sizes.size(); ++r) texts.emplace_back(all.data() + r * most, sizes[r]);
    return texts;
  } catch (const std::bad_alloc&) {
    give_up("rank " + std::to_string(rank_) + " has no memory for the texts of a collective call");
    throw;
  }

  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: nccl::" + why}; }

  [[noreturn]] void throw_failure() {
    settle();
    failure_.stop(rank_, message_, "");
  }

  void compare_devices() const {
#if CUDART_VERSION >= 12080
    int of_stream = device_;
    detail::check_cuda(cudaStreamGetDevice(compute_, &of_stream), "cudaStreamGetDevice");
    if (of_stream == device_) return;
    refuse("world: the stream is of device " + std::to_string(of_stream) + ", the communicator of device " +
           std::to_string(device_) + "; make the stream while the communicator's device is the current one");
#endif
  }

  [[nodiscard]] lane_communicator split_off(int color) {
    finish_pending();
    lane_communicator made;
    const std::string wrong = split(lane_communicators_.control.comm.get(), color, rank_, options_.max_ctas,
                                    detail::deadline_in(options_.deadline), made.comm);
    if (wrong.empty()) return made;
    give_up("rank " + std::to_string(rank_) + " makes a communicator, and " + wrong);
    made.comm.abort();
    throw_failure();
  }

  void gather(const void* local, void* of_all, std::size_t bytes) {
    const detail::device_memory sent{static_cast<std::int64_t>(bytes)};
    const detail::device_memory received{static_cast<std::int64_t>(bytes) * size_};
    const cudaStream_t stream = lane_communicators_.control.stream.get();
    detail::check_cuda(cudaMemcpyAsync(sent.data(), local, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    {
      const comm_guard guard{*this};
      go_on();
      finish_pending();
      finish(
          lane_communicators_.control.comm.get(),
          ncclAllGather(sent.data(), received.data(), bytes, ncclUint8, lane_communicators_.control.comm.get(), stream),
          "ncclAllGather", nowhere);
    }
    const char* const what = "for all ranks to come to the same collective call";
    synchronize(stream, what);
    detail::check_cuda(cudaMemcpyAsync(of_all, received.data(), bytes * static_cast<std::size_t>(size_),
                                       cudaMemcpyDeviceToHost, stream),
                       "cudaMemcpyAsync");
    synchronize(stream, what);
  }

  [[nodiscard]] std::string failure_of_nccl(ncclResult_t state, const std::string& doing) const {
    return "NCCL has failed on rank " + std::to_string(rank_) + (doing.empty() ? "" : ", ") + doing + ": " +
           describe(state);
  }
  void abort(const std::string& why) {
    std::vector<ncclComm_t> all = lane_communicators_.handles();  // before the record: it may throw
    if (!failure_.record(why)) return;
    lane_communicators_.release();
    reclamation_.abort(std::move(all), device_);
  }
  /// The periodic check of the watchdog, on its thread. Returns false when there is nothing left to watch.
  [[nodiscard]] bool check_once() noexcept {
    if (failed()) return false;
    if (!comm_lock_.try_lock()) return true;  // the rank is in a call of NCCL, which has its own deadline
    try {
      std::string wrong;
      // While NCCL enqueues a group, the rank itself checks its state soon.
      const ncclResult_t worst = pending_ == nullptr ? lane_communicators_.worst_state() : ncclSuccess;
      if (worst != ncclSuccess) {
        wrong = failure_of_nccl(worst, "");
      } else if (const std::string late = timers_->overdue(std::chrono::steady_clock::now()); !late.empty()) {
        wrong = "rank " + std::to_string(rank_) + " " + late;
      }
      if (!wrong.empty()) abort(wrong);
    } catch (const std::exception&) {  // no memory for a message: the next check tries again
    }
    comm_lock_.unlock();
    return true;
  }
  [[nodiscard]] std::string who_waits(const char* purpose) {
    const comm_guard guard{*this};
    const std::string who = "rank " + std::to_string(rank_) + " ";
    if (purpose != nullptr) return who + "has waited " + detail::describe_seconds(options_.deadline) + " " + purpose;
    return who +
           (timers_ != nullptr ? timers_->waited(options_.deadline) : call_timers::nothing_known(options_.deadline));
  }

  /// After an abort: waits until the streams are idle, so that their memory may be freed.
  void settle() noexcept {
    if (std::exchange(settled_, true)) return;
    lane_communicators_.each_with_stream(
        [&](lane_communicator& comm) { static_cast<void>(becomes_idle(comm.stream.get(), options_.deadline)); });
  }

  cudaStream_t compute_;
  options options_;
  int rank_ = 0;
  int size_ = 1;
  int device_ = 0;
  lane_communicators lane_communicators_;
  reclamation reclamation_;
  detail::failure_state failure_{"; its communicators are aborted, and this world cannot be used any more"};
  std::string message_;
  bool settled_ = false;
  std::uint64_t collective_calls_ = 0;
  comm_lock comm_lock_;
  int depth_ = 0;  // of nested guards
  std::unique_ptr<call_timers> timers_;
  bool timing_ = false;
  bool capturing_ = false;              // the current call is captured
  pending_calls* pending_ = nullptr;    // changed by the rank's thread, with the lock held
  std::unique_ptr<watchdog> watchdog_;  // last: it uses the others
};

}  // namespace orrery::nccl
