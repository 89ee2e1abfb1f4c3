// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Random calls on ranks that are processes (see soak/soak.hpp), each operator over the first few of them, on a
// communicator of its own:
//
//     mpirun -np 6 test_mpi_soak --calls 10000 [--seconds S] [--seed N] [--growth MIB]
#include "soak/soak.hpp"

#include <cstdio>
#include <exception>

#include "orrery/transport/mpi.hpp"

int main(int argc, char** argv) {
  int level = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
  int rank = 0;
  int ranks = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  int operators = 0;
  const auto run = [&](int some, const auto& body) {
    ++operators;
    MPI_Comm part = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, rank < some ? 0 : MPI_UNDEFINED, rank, &part);
    if (part == MPI_COMM_NULL) return;
    {
      // Every second operator's collectives are native.
      using orrery::mpi::collectives;
      const collectives how = operators % 2 == 0 ? collectives::native : collectives::expanded;
      orrery::mpi::world world{part, {.deadline = 300, .collectives = how}};
      body(world);
    }
    MPI_Comm_free(&part);
  };
  // The first rank's clock counts.
  const auto go_on = [](bool more) {
    int answer = more ? 1 : 0;
    MPI_Bcast(&answer, 1, MPI_INT, 0, MPI_COMM_WORLD);
    return answer != 0;
  };
  try {
    const std::string summary = soak::run(soak::parse(argc, argv), ranks, run, go_on);
    if (rank == 0) std::fputs(summary.c_str(), stdout);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "rank %d: %s\n", rank, e.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
