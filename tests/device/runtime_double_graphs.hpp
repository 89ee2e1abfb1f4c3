// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "device/runtime_double.hpp"
#include "device/runtime_double_memory.hpp"

/// What the runtime double's streams are captured into.
namespace cuda_double {

struct graph_node {
  accesses touches;
  std::function<bool()> step;
  std::vector<std::size_t> after;
};

struct captured_graph {
  std::vector<graph_node> nodes;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool invalid = false;

  /// Adds work after these nodes; returns what the next is after.
  [[nodiscard]] std::vector<std::size_t> add(accesses what, std::function<bool()> step,
                                             const std::vector<std::size_t>& after) {
    nodes.push_back({std::move(what), std::move(step), after});
    return {nodes.size() - 1};
  }

  /// The capture ends after these nodes. An error if some node does not come before one of them.
  cudaError_t finish(const std::vector<std::size_t>& last, fault_list& faults) const {
    if (invalid) return cudaErrorStreamCaptureInvalidated;
    const std::size_t count = nodes.size();
    // before[i][j]: j comes before i.
    std::vector<std::vector<bool>> before(count, std::vector<bool>(count, false));
    std::vector<bool> joined(count, false);
    const auto add = [&](std::vector<bool>& to, std::size_t node) {
      to[node] = true;
      for (std::size_t j = 0; j < node; ++j) to[j] = to[j] || before[node][j];
    };
    for (std::size_t i = 0; i < count; ++i) {
      for (const std::size_t node : nodes[i].after) add(before[i], node);
    }
    for (const std::size_t node : last) add(joined, node);
    if (std::find(joined.begin(), joined.end(), false) != joined.end()) return cudaErrorStreamCaptureUnjoined;
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        if (!before[i][j] && conflict(nodes[i].touches, nodes[j].touches)) {
          faults.add("race in a graph: " + nodes[j].touches.name + " and " + nodes[i].touches.name);
        }
      }
    }
    return cudaSuccess;
  }

  /// What all of it touches.
  [[nodiscard]] accesses touches() const {
    accesses all{"a graph", {}, {}};
    for (const graph_node& node : nodes) {
      all.reads.insert(all.reads.end(), node.touches.reads.begin(), node.touches.reads.end());
      all.writes.insert(all.writes.end(), node.touches.writes.begin(), node.touches.writes.end());
    }
    return all;
  }

  /// Runs nodes that are not done in a random order, as far as each can run; some may wait for what other streams run.
  /// Calls ran() for each. Are all done then?
  template <class Ran>
  [[nodiscard]] bool advance(std::vector<bool>& done, std::minstd_rand& random, const Ran& ran) const {
    std::vector<std::size_t> order(done.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (bool any = true; any;) {
      any = false;
      std::shuffle(order.begin(), order.end(), random);
      for (const std::size_t node : order) {
        const auto& after = nodes[node].after;
        if (done[node] || !std::all_of(after.begin(), after.end(), [&](std::size_t i) { return done[i]; })) continue;
        if (!nodes[node].step()) continue;
        done[node] = true;
        any = true;
        ran();
      }
    }
    return std::find(done.begin(), done.end(), false) == done.end();
  }
};

}  // namespace cuda_double
