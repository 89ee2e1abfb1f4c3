// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Attention over NCCL, one process for each GPU, without a launcher: rank 0 writes NCCL's id to a file that all ranks
// see, the others wait for it.
//
//     for rank in 0 1 2 3; do nccl_by_file /shared/id $rank 4 & done; wait
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>

#include <orrery/transport/nccl.hpp>

#include "nccl/share_by_file.hpp"
#include "nccl/step.cuh"

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::fprintf(stderr, "usage: nccl_by_file FILE RANK RANKS\n");
    return 2;
  }
  const int rank = std::atoi(argv[2]);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("Skipped: there is no GPU here.\n");
    return 77;
  }
  orrery::detail::check_cuda(cudaSetDevice(rank % devices), "cudaSetDevice");
  const ncclUniqueId id = share_by_file(argv[1], rank, 60);
  const orrery::nccl::communicator comm = orrery::nccl::join(id, rank, std::atoi(argv[3]));
  if (rank == 0) std::filesystem::remove(argv[1]);
  run_step(comm.get());
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
