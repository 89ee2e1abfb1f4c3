// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "orrery/transport/device.hpp"

namespace orrery::device {

/// The captured work of all ranks as one CUDA graph, to be launched any number of times. Made by `capture`.
class graph {
 public:
  graph(graph&& other) noexcept
      : world_{other.world_}, events_{std::move(other.events_)}, made_{std::exchange(other.made_, nullptr)} {}
  graph& operator=(graph&&) = delete;
  ~graph() {
    if (made_ == nullptr) return;
    detail::ignore_cuda(cudaStreamSynchronize(world_->stream()));
    detail::ignore_cuda(cudaGraphExecDestroy(made_));
  }

  /// Launches the work of all ranks: after what is on each rank's stream, and before what follows there. Collective.
  /// Costs two barriers of the threads. Throws `device_error`, and `transport_error` if another rank fails.
  void launch() {
    const auto stream = world_->stream();
    if (world_->rank() != 0) local_event().record(stream);
    world_->barrier();
    if (made_ != nullptr) {
      for (std::size_t other = 1; other < events_.size(); ++other) events_[other]->order(stream);
      detail::check_cuda(cudaGraphLaunch(made_, stream), "cudaGraphLaunch");
      local_event().record(stream);
    }
    world_->barrier();
    if (world_->rank() != 0) events_[0]->order(stream);
  }

 private:
  template <class Body>
  friend graph capture(world& on, const Body& body);

  explicit graph(world& on) : world_{&on} {
    std::vector<std::shared_ptr<detail::cuda_event>>& published_events = on.ranks().published_events();
    on.barrier();
    published_events[static_cast<std::size_t>(on.rank())] = std::make_shared<detail::cuda_event>();
    on.barrier();
    events_ = published_events;
    on.barrier();
    published_events[static_cast<std::size_t>(on.rank())] = nullptr;
  }

  [[nodiscard]] const detail::cuda_event& local_event() const {
    return *events_[static_cast<std::size_t>(world_->rank())];
  }

  /// The capture on the stream of rank 0. The destructor ends it, also after an exception.
  class origin {
   public:
    explicit origin(world& on) : world_{&on} {
      // Relaxed mode, because the threads of other ranks enqueue into the same graph.
      detail::check_cuda(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
      on.ranks().capturing() = true;
    }
    origin(const origin&) = delete;
    origin& operator=(const origin&) = delete;
    ~origin() {
      if (!ended_) detail::ignore_cuda(cudaStreamEndCapture(world_->stream(), &captured_));
      if (captured_ != nullptr) detail::ignore_cuda(cudaGraphDestroy(captured_));
      world_->ranks().capturing() = false;
    }
    [[nodiscard]] cudaGraphExec_t end() {
      ended_ = true;
      detail::check_cuda(cudaStreamEndCapture(world_->stream(), &captured_), "cudaStreamEndCapture");
      cudaGraphExec_t made = nullptr;
      detail::check_cuda(cudaGraphInstantiate(&made, captured_, 0), "cudaGraphInstantiate");
      return made;
    }

   private:
    world* world_;
    bool ended_ = false;
    cudaGraph_t captured_ = nullptr;
  };

  /// Locks the graph while a rank enqueues into it.
  class enqueue_lock {
   public:
    explicit enqueue_lock(world& on) : lock_{on.ranks().capture_mutex()}, ranks_{&on.ranks()}, streams_{&on.streams()} {
      on.ranks().host().check(on.rank(), "capturing a graph");
      ++on.ranks().enqueuing();
      streams_->set_capture_mutex(&on.ranks().capture_mutex());
    }
    enqueue_lock(const enqueue_lock&) = delete;
    enqueue_lock& operator=(const enqueue_lock&) = delete;
    ~enqueue_lock() {
      streams_->set_capture_mutex(nullptr);
      --ranks_->enqueuing();
    }

   private:
    std::unique_lock<std::mutex> lock_;
    group* ranks_;
    rank_streams* streams_;
  };

  template <class Body>
  void capture_body(const Body& body) {
    std::unique_ptr<origin> of_all;
    try {
      const cudaStream_t stream = world_->stream();
      if (world_->rank() == 0) {
        of_all = std::make_unique<origin>(*world_);
        local_event().record(stream);
      }
      world_->barrier();
      {
        const enqueue_lock lock{*world_};
        if (world_->rank() != 0) events_[0]->order(stream);
        body();
        if (world_->rank() != 0) local_event().record(stream);
      }
      world_->barrier();
      if (of_all != nullptr) {
        for (std::size_t other = 1; other < events_.size(); ++other) events_[other]->order(stream);
        made_ = of_all->end();
        of_all.reset();
      }
      world_->barrier();
    } catch (const std::exception& e) {
      world_->ranks().host().fail("rank " + std::to_string(world_->rank()) +
                                  " failed while a graph was captured: " + e.what());
      leave(of_all != nullptr);
      throw;
    }
  }

  /// Ends the capture after a failure: rank 0 waits until no rank enqueues into it any more. The others, whose streams
  /// are part of it, wait for rank 0.
  void leave(bool as_origin) {
    group& ranks = world_->ranks();
    const auto deadline = detail::deadline_in(ranks.host().get_options().deadline);
    const auto over = [&] {
      if (!as_origin) return !ranks.capturing();
      const std::lock_guard alone{ranks.capture_mutex()};
      return ranks.enqueuing() == 0;
    };
    while (!over() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  }

  world* world_;
  std::vector<std::shared_ptr<detail::cuda_event>> events_;  // by rank
  cudaGraphExec_t made_ = nullptr;                           // of rank 0; null on the others
};

/// Captures everything that `body()` enqueues on the streams of all ranks, calls of their operators included, into one
/// CUDA graph, without running it. Collective. The operators and all tensors must outlive the graph.
///
///     auto step = orrery::device::capture(world, [&] {
///       attend.forward(q, k, v, out, lse);
///       attend.backward(q, k, v, out, lse, grad_out, grad_q, grad_k, grad_v);
///     });
///     for (;;) step.launch();
///
/// The graph originates in the stream of rank 0; the other streams join it by events. One thread enqueues at a time,
/// since a graph must not be used by several threads at once. The body must not construct, allocate or synchronize. If
/// it throws, all ranks throw, and the world cannot be used any more.
template <class Body>
[[nodiscard]] graph capture(world& on, const Body& body) {
  graph made{on};
  made.capture_body(body);
  return made;
}

}  // namespace orrery::device
