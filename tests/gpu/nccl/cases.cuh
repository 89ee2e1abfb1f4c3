// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "orrery/kernel/device_reference.cuh"
#include "orrery/layout/layout.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/transport/nccl.hpp"

#include "support/topologies.hpp"
#include "transport/device/conformance.hpp"

/// What is tested of the transport `nccl` on GPUs, whether its ranks are threads or processes. They are called on each
/// rank, and throw what is wrong.
namespace nccl_gpu {

namespace nccl = orrery::nccl;
using kernel = orrery::device_reference<double>;

/// Every topology that admits the world, forward and backward, against the oracle; `run(ranks, body)` calls body(world)
/// on this rank, or on all. Empty, or what is wrong.
template <class Run>
[[nodiscard]] std::string failures(const Run& run, int world) {
  std::uint64_t seed = 0;
  std::string all;
  for (const orrery::any_topology& topology : std::vector<orrery::any_topology>{
           orrery::ring{}, orrery::all_gather{}, orrery::wallfacer<2>{}, orrery::concentric<2>{},
           orrery::double_ring<2>{}, orrery::ulysses{}, orrery::usp<2>{}, my_ring{}}) {
    for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
      if (topology.unsupported_reason(world, orrery::pass::forward) != nullptr ||
          topology.unsupported_reason(world, circulate) != nullptr)
        continue;
      ++seed;
      // Blocks of one size, so that collectives are NCCL's own, and of several.
      const orrery::attention_shape shape{.length = seed % 2 == 0 ? 83 : 96,
                                          .query_heads = 8,
                                          .key_heads = 4,
                                          .head_dim = 6,
                                          .value_dim = 5,
                                          .circulate = circulate};
      const std::string found = cuda_test::failures<orrery::any_topology, kernel, nccl::world>(
          run, world, shape, orrery::causal{}, orrery::zigzag{}, seed, topology);
      if (!found.empty()) all += topology.name() + " over " + std::to_string(world) + ": " + found + "\n";
    }
  }
  return all;
}

/// One rank's operator and tensors.
class step {
 public:
  explicit step(nccl::world& on)
      : world_{&on},
        attend_{on, shape(), orrery::causal{}, orrery::zigzag{}, orrery::ring{}},
        host_{oracle::random_problem<double>(conformance::oracle_shape(shape()), 1),
              attend_.query_positions(),
              attend_.key_positions(),
              {}},
        tensors_{host_, on.stream()} {}

  void enqueue() {
    tensors_.forward(attend_);
    tensors_.backward(attend_);
  }
  /// The bits of what was enqueued; the results are poisoned then.
  [[nodiscard]] std::string results() {
    tensors_.fetch();
    world_->synchronize();
    std::string bits = host_.bits();
    host_.poison();
    tensors_.bring_results();
    return bits;
  }

 private:
  [[nodiscard]] static orrery::attention_shape shape() { return {.length = 256, .query_heads = 4, .head_dim = 16}; }

  nccl::world* world_;
  orrery::attention<orrery::any_topology, kernel> attend_;
  conformance::rank_tensors<kernel> host_;
  cuda_test::device_tensors<kernel> tensors_;
};

/// What was enqueued, as a graph.
class captured_step {
 public:
  captured_step(nccl::world& on, step& mine) {
    orrery::detail::check_cuda(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeThreadLocal),
                               "cudaStreamBeginCapture");
    mine.enqueue();
    orrery::detail::check_cuda(cudaStreamEndCapture(on.stream(), &captured_), "cudaStreamEndCapture");
    orrery::detail::check_cuda(cudaGraphInstantiate(&graph_, captured_, 0), "cudaGraphInstantiate");
  }
  captured_step(const captured_step&) = delete;
  captured_step& operator=(const captured_step&) = delete;
  ~captured_step() {
    if (graph_ != nullptr) orrery::detail::ignore_cuda(cudaGraphExecDestroy(graph_));
    if (captured_ != nullptr) orrery::detail::ignore_cuda(cudaGraphDestroy(captured_));
  }
  void launch(nccl::world& on) const {
    on.watch([&] { orrery::detail::check_cuda(cudaGraphLaunch(graph_, on.stream()), "cudaGraphLaunch"); });
  }

 private:
  cudaGraph_t captured_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

/// A graph, launched again and again, gives the same bits as the calls.
inline void check_graph(nccl::world& on) {
  step mine{on};
  mine.enqueue();
  const std::string expected = mine.results();
  on.barrier();
  {
    const captured_step graph{on, mine};
    for (int i = 0; i < 3; ++i) {
      graph.launch(on);
      if (mine.results() != expected) {
        throw std::runtime_error{"rank " + std::to_string(on.rank()) + " has other bits by a graph"};
      }
    }
  }
  mine.enqueue();
  if (mine.results() != expected) {
    throw std::runtime_error{"rank " + std::to_string(on.rank()) + " has other bits after a graph"};
  }
}

/// The last rank, at once, calls `leave()`; the others, which wait in cudaStreamSynchronize for the several lanes of a
/// step, are released, and told, while a graph of the same calls lives.
template <class Leave>
void check_release(nccl::world& on, const Leave& leave) {
  step mine{on};
  mine.enqueue();
  on.synchronize();
  const captured_step alive{on, mine};
  on.barrier();
  if (on.rank() == on.size() - 1) return leave();
  std::string said;
  try {
    mine.enqueue();
    orrery::detail::ignore_cuda(cudaStreamSynchronize(on.stream()));
    on.barrier();
  } catch (const orrery::transport_error& e) {
    said = e.what();
  }
  if (on.usable() || said.find("its communicators are aborted") == std::string::npos) {
    throw std::runtime_error{"rank " + std::to_string(on.rank()) + " was not told that a peer has left: " + said};
  }
}

}  // namespace nccl_gpu
