// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The same as masks.cpp, with ranks that are processes: started by mpirun, which says how many there are. Times are
// taken from a clock that all processes of one machine share, so run it on one machine (see masks.py). Ranks of a node
// follow each other; what nodes send each other is told if their number is given.
#include <cstdio>
#include <exception>
#include <string>

#include "orrery/transport/mpi.hpp"

#include "masks/run.hpp"

int main(int argc, char** argv) {
  bench::arguments given{argc, argv,
                         "bench_masks_mpi [tokens = 1024] [heads = 4] [dim = 128] [calls = 5] [ranks_per_node]"};
  bench::masks_options options;
  options.read(given);
  options.ranks_per_node = static_cast<int>(given.number("ranks_per_node", 0, 0, 1 << 20));
  given.finish();
  int level = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
  try {
    orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 300}};
    const std::string wrong = options.wrong_for(world.size());
    if (wrong.empty()) {
      bench::measure_masks(world, options);
    } else if (world.rank() == 0) {
      std::fprintf(stderr, "bench_masks_mpi: %s\n", wrong.c_str());
    }
    MPI_Finalize();
    return wrong.empty() ? 0 : 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_masks_mpi: %s\n", e.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
    return 1;
  }
}
