// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Every rank runs the same tests; rank 0 prints the counts, the others what has failed on them. MPI is initialised for
// MPI_THREAD_MULTIPLE, or for what `--thread-level=funneled` or `--thread-level=serialized` says.
#define DOCTEST_CONFIG_IMPLEMENT
#include "transport/mpi/main.hpp"

#include <string>

#include <doctest/doctest.h>

int main(int argc, char** argv) {
  try {
    const orrery::mpi::world too_early{MPI_COMM_WORLD};
  } catch (const std::exception& e) {
    mpi_test::before_initialisation() = e.what();
  }
  int wanted = MPI_THREAD_MULTIPLE;
  for (int i = 1; i < argc; ++i) {
    if (argv[i] == std::string{"--thread-level=funneled"}) wanted = MPI_THREAD_FUNNELED;
    if (argv[i] == std::string{"--thread-level=serialized"}) wanted = MPI_THREAD_SERIALIZED;
  }
  int level = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, wanted, &level);
  doctest::Context context{argc, argv};
  context.setOption("no-intro", true);
  context.setOption("no-path-filenames", true);
  context.setOption("no-colors", true);
  if (mpi_test::rank() != 0) context.setOption("minimal", true);
  int result = context.run();
  MPI_Allreduce(MPI_IN_PLACE, &result, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return result;
}
