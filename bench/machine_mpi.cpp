// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The same as machine.cpp, with ranks that are processes:
//
//     mpirun -n 16 --map-by ppr:8:node --bind-to core bench_machine_mpi > here.txt
#include "orrery/transport/mpi.hpp"

#include "common/arguments.hpp"
#include "machine/run.hpp"

int main(int argc, char** argv) {
  bench::arguments given{argc, argv,
                         "bench_machine_mpi [query heads = 4] [key heads = query heads] [head dimension = 64] "
                         "[repetitions = 7] [three | every]"};
  const bench::machine_arguments o = bench::read_rest(given);
  MPI_Init(&argc, &argv);
  try {
    int status = 0;
    {
      orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 600}};
      status = bench::calibrate_and_compare<orrery::flash<float>>(world, o, "processes of an MPI job");
    }
    MPI_Finalize();
    return status != 0 || std::fflush(stdout) == 0 ? status : 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_machine_mpi: %s\n", e.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
    return 1;
  }
}
