// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/detail/initializer_text.hpp"

namespace orrery::nccl {

/// Options of `world`. All ranks pass the same. If ranks differ about native collectives, none are used.
struct options {
  /// How long a rank waits, in seconds, before it aborts its communicators and fails with a message. Applies to the
  /// host's waits for NCCL, and for other ranks in `synchronize`, `barrier` and `all_gather`. With a watchdog it also
  /// applies to the device, for the end of a call; while the host is still inside the call, time counts from the host's
  /// last step in it.
  double deadline = 60;
  /// Use ncclAllGather for marked all-gathers whose blocks all have one size. It needs memory for all gathered blocks
  /// in a row, and a copy of each block to its slot. Otherwise, grouped sends and receives move the blocks directly
  /// between slots.
  bool native_all_gather = true;
  /// Use ncclAlltoAll for marked all-to-alls and reduce-scatters in which each two members exchange the same number of
  /// bytes. It needs memory in which all blocks lie in a row, for both directions, and copies each block to it and from
  /// it. Off by default, since NCCL up to 2.30 implements it by the same sends and receives that are otherwise made
  /// directly between slots, unless the memory is registered with NCCL. NCCL before 2.28 has no such call; there, this
  /// library makes the sends and receives.
  ///
  /// ncclReduceScatter is never used. The partials of a forward are merged by their log-sum-exp, which is not an
  /// operator of NCCL. The partials of a backward are sums, but ncclReduceScatter would send as many bytes ((ranks - 1)
  /// blocks a rank, by NCCL's rings as by direct exchange). It also needs all partials of a rank in a row, including
  /// the rank's own, which lies in the trainer's tensor with its type and strides. And it does not fix the order of
  /// addition: on NVLink switches (NVLS) repeated calls have given different bits, which this library must not.
  bool native_all_to_all = false;
  /// The period, in seconds, at which a thread of each world (the watchdog) checks its communicators and the events of
  /// its calls. It checks at least four times in a deadline, and sleeps in between. It aborts the communicators at the
  /// deadline, or when NCCL reports a failure, even while the rank's own thread waits in cudaStreamSynchronize or
  /// computes. It sees calls captured into a graph only inside `world::watch`. 0: no watchdog.
  double watchdog_period = 1;
  /// The most thread blocks (CTAs) of one kernel of NCCL, from 1 to 64; 0: NCCL's choice. Each takes room on a
  /// multiprocessor from the attention kernel beside it, so few blocks slow attention less, and more blocks send
  /// faster. With it, lanes' streams have the greatest priority: a kernel of NCCL that is ready starts as soon as
  /// thread blocks of the attention kernel end, before the next ones of these.
  int max_ctas = 0;
};

/// The options as their designated initialiser, without what has its default: "{.native_all_gather = false}".
[[nodiscard]] inline std::string to_string(const options& o) {
  const options defaults;
  return orrery::detail::initializer_text{}
      .member("deadline", o.deadline, defaults.deadline)
      .member("native_all_gather", o.native_all_gather, defaults.native_all_gather)
      .member("native_all_to_all", o.native_all_to_all, defaults.native_all_to_all)
      .member("watchdog_period", o.watchdog_period, defaults.watchdog_period)
      .member("max_ctas", o.max_ctas, defaults.max_ctas)
      .text();
}

}  // namespace orrery::nccl
