// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <chrono>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/device/handles.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/nccl/communicator.hpp"

namespace orrery::nccl {

/// A communicator and the stream that its calls are enqueued on.
struct lane_communicator {
  detail::cuda_stream stream = detail::cuda_stream::of_greatest_priority();
  communicator comm{};
};

/// Waits until the stream is idle, at most so many seconds. Returns true if it is, without an error.
[[nodiscard]] inline bool becomes_idle(cudaStream_t stream, double seconds) noexcept {
  const auto deadline = detail::deadline_in(seconds);
  cudaError_t state = cudaErrorNotReady;
  while ((state = cudaStreamQuery(stream)) == cudaErrorNotReady && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  detail::ignore_cuda(state);
  return state == cudaSuccess;
}

/// The communicators of a world, made by splitting: one for agreements when plans are made, one for each lane, so that
/// lanes do not wait for each other, and one for each set of groups with native collectives. The first is split from
/// the trainer's communicator, the others from the first. Use it from one thread at a time.
class lane_communicators {
 public:
  /// The communicator for agreements.
  lane_communicator control{};

  /// Calls visit(lane_communicator) for those that have a communicator.
  template <class Visit>
  void each(const Visit& visit) {
    each_with_stream([&](lane_communicator& comm) {
      if (comm.comm.get() != nullptr) visit(comm);
    });
  }
  /// Calls visit(lane_communicator) for all.
  template <class Visit>
  void each_with_stream(const Visit& visit) {
    visit(control);
    for (auto& [number, comm] : lanes_) visit(comm);
    for (auto& [group, comm] : groups_) visit(comm);
  }

  [[nodiscard]] std::vector<ncclComm_t> handles() {
    std::vector<ncclComm_t> all;
    each([&](lane_communicator& comm) { all.push_back(comm.comm.get()); });
    return all;
  }
  /// Gives up all communicators: whoever has their handles aborts or destroys them.
  void release() noexcept {
    each([](lane_communicator& comm) { comm.comm.release(); });
  }

  /// The communicator of a lane; made by make(color) at the first call.
  template <class Make>
  [[nodiscard]] lane_communicator& lane(int number, const Make& make) {
    const auto found = lanes_.find(number);
    return found != lanes_.end() ? found->second : lanes_.emplace(number, make(0)).first->second;
  }
  /// The communicator of the groups of `ranks` ranks that are `stride` apart. The group of this rank begins at `first`;
  /// `first` < 0 if the rank is in none of them.
  template <class Make>
  [[nodiscard]] lane_communicator& groups(int ranks, int stride, int first, const Make& make) {
    const std::pair<int, int> shape{ranks, stride};
    const auto found = groups_.find(shape);
    if (found != groups_.end()) return found->second;
    return groups_.emplace(shape, make(first < 0 ? NCCL_SPLIT_NOCOLOR : first)).first->second;
  }

  /// Returns an error that NCCL reports for any of the communicators, or ncclSuccess.
  [[nodiscard]] ncclResult_t worst_state() {
    ncclResult_t worst = ncclSuccess;
    each([&](const lane_communicator& comm) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t asked = ncclCommGetAsyncError(comm.comm.get(), &state);
      if (asked != ncclSuccess) state = asked;
      if (state != ncclSuccess && state != ncclInProgress) worst = state;
    });
    return worst;
  }

 private:
  std::map<int, lane_communicator> lanes_;
  std::map<std::pair<int, int>, lane_communicator> groups_;
};

}  // namespace orrery::nccl
