// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Does an exchange fly while a tile is computed? Prints times and their ratio; asserts nothing about them. For a real
// answer run it across a network whose messages cost no processor time:
//
//     mpirun -np 2 --host a,b test_mpi_overlap --test-case=overlap
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/host/context.hpp"
#include "orrery/schedule/builder.hpp"

#include "transport/mpi/main.hpp"

namespace {

/// A kernel: works for so long, in blocks of 30 microseconds, and polls between them.
void compute(const orrery::host_context& context, double seconds, bool polling) {
  const auto now = [] { return std::chrono::steady_clock::now(); };
  const auto end = now() + std::chrono::duration<double>(seconds);
  while (now() < end) {
    const auto end_of_block = now() + std::chrono::microseconds{30};
    while (now() < end_of_block) {}
    if (polling) context.poll();
  }
}

}  // namespace

TEST_CASE("overlap") {
  orrery::mpi::world world{MPI_COMM_WORLD};
  if (world.size() == 1) return;
  orrery::builder schedule{world.rank(), world.size()};
  schedule.shift(orrery::key(world.rank()), +1);
  schedule.next_step();
  const orrery::program p = schedule;
  const char* const megabytes = std::getenv("ORRERY_OVERLAP_MB");
  const auto bytes = static_cast<std::size_t>((megabytes != nullptr ? std::atof(megabytes) : 8) * 1e6);
  std::vector<std::byte> from(bytes), to(bytes);
  std::vector<orrery::exchange_pieces> pieces(1);
  pieces[0].sent = {{from.data(), static_cast<std::int64_t>(bytes)}};
  pieces[0].received = {{to.data(), static_cast<std::int64_t>(bytes)}};
  auto channel = world.open(p, pieces);

  // The best of a few, as the slowest rank sees it.
  const auto time = [&](bool exchanging, double seconds, bool polling) {
    double best = 1e9;
    for (int repetition = 0; repetition < 6; ++repetition) {
      world.barrier();
      const auto start = std::chrono::steady_clock::now();
      if (exchanging) channel.begin();
      if (exchanging) channel.post(0);
      compute(channel.context(), seconds, polling);
      if (exchanging) channel.await(0);
      double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      MPI_Allreduce(MPI_IN_PLACE, &took, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
      if (repetition > 0 && took < best) best = took;
    }
    return best;
  };
  const double exchange = time(true, 0, false);
  const double tile = time(false, exchange, true);
  const double polled = time(true, exchange, true);
  const double silent = time(true, exchange, false);
  CHECK(exchange > 0);
  if (world.rank() == 0) {
    std::printf(
        "%.1f MB: exchange %.2f ms, tile %.2f ms, both %.2f ms (%.2f tiles), without polling %.2f ms (%.2f tiles)\n",
        static_cast<double>(bytes) / 1e6, exchange * 1e3, tile * 1e3, polled * 1e3, polled / tile, silent * 1e3,
        silent / tile);
  }
}
