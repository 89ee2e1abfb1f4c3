// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace orrery::detail {

/// The requested time slice in nanoseconds: the most that Linux grants.
inline constexpr std::uint64_t long_time_slice = 100'000'000;

/// Asks the operating system to let the calling thread, and the threads that it starts, run for 100 ms before others
/// that wait for the same core. If there are more computing threads than cores, each context switch refills the caches
/// of the core, and Linux by default switches about every 3 ms.
///
/// This is only a request. It has no effect on Linux before 6.12, on other systems, and for threads whose scheduling
/// policy is not an ordinary one. Policy, priority and everything else about the thread stay the same.
inline void ask_for_long_time_slices() noexcept {
#if defined(SYS_sched_getattr) && defined(SYS_sched_setattr)
  struct {  // the kernel's sched_attr, which the C library of many systems does not declare
    std::uint32_t size;
    std::uint32_t policy;
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime;
    std::uint64_t deadline;
    std::uint64_t period;
    std::uint32_t least_utilization;
    std::uint32_t most_utilization;
  } attributes{};
  constexpr std::uint32_t ordinary = 0;
  constexpr std::uint32_t batch = 3;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  if (attributes.policy != ordinary && attributes.policy != batch) return;
  attributes.runtime = long_time_slice;
  static_cast<void>(syscall(SYS_sched_setattr, 0, &attributes, 0));  // a refusal changes nothing
#endif
}

}  // namespace orrery::detail
