// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "orrery/device/context.hpp"
#include "orrery/kernel/cudnn/call.hpp"

/// cuDNN itself, compiled once: cudnn-frontend takes compilers long.
namespace cudnn_test {

/// A `cudnn_graphs`.
class engine {
 public:
  engine();
  engine(const engine&) = delete;
  engine& operator=(const engine&) = delete;
  ~engine();
  int plan(const orrery::detail::cudnn_call& call);
  [[nodiscard]] std::int64_t workspace_bytes(int plan) const;
  void run(int plan, const orrery::device_context& context, const orrery::detail::cudnn_tensors& tensors,
           void* workspace);

 private:
  class hidden;
  std::unique_ptr<hidden> hidden_;
};

/// Empty, or why cuDNN does not support the call on a device of this compute capability (major * 10 + minor). No device
/// is needed: cuDNN asks its heuristics and engines for one that is described to it.
[[nodiscard]] std::string unsupported(const orrery::detail::cudnn_call& call, int compute_capability);

/// What making a `cudnn_graphs` throws.
[[nodiscard]] std::string sentence_without_device();

}  // namespace cudnn_test
