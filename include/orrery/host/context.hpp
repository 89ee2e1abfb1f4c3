// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/detail/function_ref.hpp"
#include "orrery/host/thread_team.hpp"

namespace orrery {

/// What a host transport passes to a kernel: the threads that the kernel may use, and a function that it should call
/// regularly (between blocks of a tile, on the calling thread). Transports without asynchronous progress, such as MPI,
/// make progress in it.
struct host_context {
  thread_team* team = nullptr;                 ///< null: the calling thread alone
  detail::function_ref<void()> progress = {};  ///< or none; what it refers to must outlive the context

  /// The number of threads that the kernel may use, including the calling one.
  [[nodiscard]] int threads() const noexcept { return team == nullptr ? 1 : team->threads(); }

  /// Lets the transport make progress. For the calling thread only.
  void poll() const {
    if (progress) progress();
  }

  /// Calls work(item, context) once for each item in [0, items), on all threads. Items begin in increasing order. The
  /// context that `work` gets has no team, and polls on the calling thread only.
  template <class Work>
  void for_each(std::int64_t items, const Work& work) const {
    const host_context single{nullptr, progress};
    if (team == nullptr) {
      for (std::int64_t item = 0; item < items; ++item) work(item, single);
    } else {
      team->run(items, [&](std::int64_t item, int thread) { work(item, thread == 0 ? single : host_context{}); });
    }
  }
};

}  // namespace orrery
