#include <cstdio>

#include <orrery/transport/mpi.hpp>

int main() {
  try {
    const orrery::mpi::world too_early{MPI_COMM_WORLD};
  } catch (const std::invalid_argument& e) {
    std::printf("%s\n", e.what());
    return 0;
  }
  return 1;
}
