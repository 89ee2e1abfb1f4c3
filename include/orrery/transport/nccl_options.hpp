// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

namespace orrery::nccl {

/// All ranks give the same; where ranks differ about native collectives, there are none.
struct options {
  /// How long a rank waits, in seconds, before it aborts its communicators and fails with a message: its host for
  /// NCCL, in `synchronize`, `barrier` and `all_gather` for the other ranks, and, if there is a watchdog, its device
  /// for the end of a call that it has begun: of one that the host is still in the middle of, since the host's last
  /// step in it.
  double deadline = 60;
  /// Use ncclAllGather for what programs remark as an all-gather, where all its blocks have one size: it needs memory
  /// for the gathered blocks in a row, and a copy of each to its slot. Otherwise, grouped sends and receives between
  /// the slots themselves.
  bool native_all_gather = true;
  /// Use ncclAlltoAll for what programs remark as an all-to-all or a reduce-scatter, where each two members send each
  /// other as many bytes: the same bytes from and to memory in which they lie in a row, so it costs that memory twice,
  /// a copy of each block to it and one from it. Off, since NCCL up to 2.30 turns it into the sends and receives that
  /// are made otherwise, from slot to slot, unless the memory is registered with it; before 2.28, where there is no
  /// such call, so does this library.
  ///
  /// ncclReduceScatter is never used. The partials of a forward merge by their log-sum-exp, which is none of NCCL's
  /// operators. Those of a backward are sums, but it would send as many bytes ((ranks - 1) blocks a rank, by NCCL's
  /// rings as by direct exchange), needs all of a rank's partials in a row, its own among them, which lies in the
  /// trainer's tensor, in its type and strides, and promises no order of addition: on NVLink switches (NVLS) the same
  /// call has given other bits, and here it must not.
  bool native_all_to_all = false;
  /// How often a thread of each world looks at its communicators and at the events of its calls, in seconds; at least
  /// four times in a deadline, and asleep in between. It aborts the communicators at the deadline, or when NCCL says
  /// that one of them has failed, while the rank's own thread is anywhere else: in cudaStreamSynchronize, or computing.
  /// Calls captured into a graph are seen by it only inside of `world::watch`. 0: there is no such thread.
  double watchdog_period = 1;
};

}  // namespace orrery::nccl
