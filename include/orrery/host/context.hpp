// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/host/thread_team.hpp"

namespace orrery {

/// What a transport hands to a kernel that computes on the host: the threads that it may use, and a function to call
/// now and then (between blocks of a tile, on the calling thread) for transports that make no progress by themselves.
struct host_context {
  thread_team* team = nullptr;  ///< null: the calling thread alone
  void (*progress)(void*) = nullptr;
  void* progress_argument = nullptr;

  /// How many threads the kernel may use, the calling one among them.
  [[nodiscard]] int threads() const noexcept { return team == nullptr ? 1 : team->threads(); }

  void poll() const {
    if (progress != nullptr) progress(progress_argument);
  }

  /// Calls work(item, context) once for each item in [0, items), begun in increasing order, on all threads. The context
  /// that work gets is this one without its team, and polls on the calling thread only.
  template <class Work>
  void for_each(std::int64_t items, const Work& work) const {
    const host_context alone{nullptr, progress, progress_argument};
    if (team == nullptr) {
      for (std::int64_t item = 0; item < items; ++item) work(item, alone);
    } else {
      team->run(items, [&](std::int64_t item, int thread) { work(item, thread == 0 ? alone : host_context{}); });
    }
  }
};

}  // namespace orrery
