// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Attention over NCCL, one process for each GPU, without a launcher: rank 0 writes NCCL's id to a file that all ranks
// see, the others wait for it.
//
//     for rank in 0 1 2 3; do nccl_by_file /shared/id $rank 4 & done; wait
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>

#include <orrery/transport/deadline.hpp>
#include <orrery/transport/nccl.hpp>

#include "nccl/step.cuh"

namespace {

ncclUniqueId share_by_file(const std::string& path, int rank, double seconds) {
  ncclUniqueId id;
  if (rank == 0) {
    if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess) {
      throw std::runtime_error{"ncclGetUniqueId: " + orrery::nccl::describe(result)};
    }
    std::ofstream{path + ".new", std::ios::binary}.write(id.internal, sizeof(id.internal));
    std::filesystem::rename(path + ".new", path);  // so that nobody reads half of it
    return id;
  }
  const auto deadline = orrery::deadline_in(seconds);
  while (!std::filesystem::exists(path)) {
    if (std::chrono::steady_clock::now() > deadline)
      throw std::runtime_error{path + " does not appear: where is rank 0?"};
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  std::ifstream{path, std::ios::binary}.read(id.internal, sizeof(id.internal));
  return id;
}

}  // namespace

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
  orrery::check_cuda(cudaSetDevice(rank % devices), "cudaSetDevice");
  const ncclUniqueId id = share_by_file(argv[1], rank, 60);
  const orrery::nccl::communicator comm = orrery::nccl::join(id, rank, std::atoi(argv[3]));
  if (rank == 0) std::filesystem::remove(argv[1]);
  run_step(comm.get());
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
