// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>

#include "orrery/detail/initializer_text.hpp"

namespace orrery::mpi {

/// How exchanges that a program marks as a collective are sent: message by message, or by one non-blocking collective
/// call of MPI.
enum class collectives : std::uint8_t { expanded, native };

/// Options of `world`.
struct options {
  /// How long a rank waits for another, in seconds, before it fails with a message.
  double deadline = 60;
  /// Threads that compute in each rank: the rank's own thread, and helpers that all of its plans share. Helpers sleep
  /// between calls and never call MPI. Started with the world's first plan. More than one thread needs
  /// MPI_THREAD_FUNNELED.
  int threads_per_rank = 1;
  /// Seconds between two calls of MPI while a tile is computed. Most MPI libraries move large messages only while the
  /// program is inside an MPI call: without these calls, messages would make no progress behind the computation.
  double progress_interval = 0.0002;
  /// Whether marked collectives are calls of MPI. Native collectives run on communicators of their groups, made with
  /// the first plan that has such a group. MPI makes a communicator of some of the ranks in a call that has no
  /// deadline, so a separate thread makes it, which needs MPI_THREAD_MULTIPLE. With a lower thread level, only
  /// collectives of all ranks are native, and those of smaller groups are expanded.
  ///
  /// With OpenMPI 4.1.4, native collectives took 1.02 times as long as expanded ones on 8 ranks of 4 nodes (those of
  /// `bench/cluster.py`, 100 Mbit/s). In shared memory, on two cores, they took 1.1 times as long with blocks of 256 or
  /// 512 KiB, 1.2 times with 8 KiB and 4 ranks, and 0.8 times with 4 KiB and 8 ranks. With MPICH 4.0.2 and 4 ranks:
  /// 0.96 times with 512 KiB, and 1.2 times with 8 KiB. Medians over five or six topologies, forward and backward.
  mpi::collectives collectives = mpi::collectives::expanded;
};

/// The options as their designated initialiser, without what has its default:
/// "{.collectives = mpi::collectives::native}".
[[nodiscard]] inline std::string to_string(const options& o) {
  const options defaults;
  orrery::detail::initializer_text text;
  text.member("deadline", o.deadline, defaults.deadline)
      .member("threads_per_rank", o.threads_per_rank, defaults.threads_per_rank)
      .member("progress_interval", o.progress_interval, defaults.progress_interval);
  if (o.collectives != defaults.collectives)
    text.member("collectives", orrery::detail::initializer_text::code{"mpi::collectives::native"});
  return text.text();
}

}  // namespace orrery::mpi
