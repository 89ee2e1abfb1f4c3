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
  bench::sampling_options o;
  o.heads = given.number("query heads", 4, 1, 256);
  o.key_heads = given.number("key heads", o.heads, 1, o.heads);
  o.dim = given.number("head dimension", 64, 1, 256);
  o.repetitions = static_cast<int>(given.number("repetitions", 7, 1, 1000));
  const bool every = given.word("schedules", "three", "every") == "every";
  given.finish();
  if (o.heads % o.key_heads != 0) given.refuse("key heads must divide query heads");
  MPI_Init(&argc, &argv);
  try {
    int status = 0;
    {
      orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 600}};
      status = bench::calibrate_and_compare<orrery::flash<float>>(world, o, every, "processes of an MPI job");
    }
    MPI_Finalize();
    return status != 0 || std::fflush(stdout) == 0 ? status : 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_machine_mpi: %s\n", e.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
    return 1;
  }
}
