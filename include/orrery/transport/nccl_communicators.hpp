// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/kernel/device_context.hpp"
#include "orrery/transport/deadline.hpp"
#include "orrery/transport/device_objects.hpp"
#include "orrery/transport/transport.hpp"

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
  while (result == ncclInProgress) {
    if (std::chrono::steady_clock::now() >= deadline) {
      return std::string{call} + " is not done before the deadline: another rank has not come to it";
    }
    std::this_thread::yield();
    if (const ncclResult_t asked = ncclCommGetAsyncError(comm, &result); asked != ncclSuccess) result = asked;
  }
  return result == ncclSuccess ? "" : std::string{call} + " failed: " + describe(result);
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
    std::string wrong = wait_for(parent_, result, "ncclCommSplit", deadline);
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

}  // namespace orrery::nccl
