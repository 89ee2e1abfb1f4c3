// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// The same trainer with ranks that are processes: mpirun -np 4 train_mpi. Every process also trains alone, on one
// thread, to have something to compare with.

#include <cstdio>
#include <exception>
#include <stdexcept>

#include <orrery/orrery.hpp>
#include <orrery/transport/mpi.hpp>

#include "train/trainer.hpp"

namespace train {

const topologies all{orrery::ring{},          orrery::double_ring<2>{},
                     orrery::wallfacer<2>{},  orrery::placed<orrery::wallfacer<2>, orrery::rings_in_nodes>{},
                     orrery::concentric<2>{}, orrery::usp<2>{},
                     orrery::ulysses{}};

/// Ranks that are the processes of an MPI job.
struct process_ranks : host_ranks {
  orrery::mpi::world* world;

  template <class Body>
  void run(int, const Body& body) const {
    body(*world);
  }
  template <class World>
  static bool reports(const World&) {
    return true;
  }
};

int run_processes(const std::vector<std::string>& arguments) {
  orrery::mpi::world world{MPI_COMM_WORLD};
  options o;
  o.ranks = world.size();
  o = parse(arguments, o);
  if (o.ranks != world.size())
    throw std::invalid_argument{"--ranks is " + std::to_string(o.ranks) + ", but there are " +
                                std::to_string(world.size()) + " processes; leave it out"};
  if (o.device != "host")
    throw std::invalid_argument{"--device is " + o.device + ", but processes compute on the host here; use train"};
  return run(training_on(process_ranks{{}, &world}), all, o);
}

}  // namespace train

int main(int count, char** arguments) {
  int level = MPI_THREAD_SINGLE, rank = 0, status = 0;
  MPI_Init_thread(&count, &arguments, MPI_THREAD_FUNNELED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank > 0 && std::freopen("/dev/null", "w", stdout) == nullptr) MPI_Abort(MPI_COMM_WORLD, 1);  // one table will do
  try {
    status = train::run_processes({arguments + 1, arguments + count});
  } catch (const std::invalid_argument& wrong) {
    if (rank == 0) std::fprintf(stderr, "train_mpi: %s\n", wrong.what());
    status = 2;
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "train_mpi: %s\n", failure.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return status;
}
