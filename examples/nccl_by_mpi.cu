// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Attention over NCCL, one process for each GPU, started by MPI, which hands NCCL's id from rank 0 to the others.
//
//     mpirun -np 4 nccl_by_mpi
#include <cstdio>
#include <exception>
#include <stdexcept>

#include <mpi.h>

#include <orrery/transport/mpi.hpp>
#include <orrery/transport/nccl.hpp>

#include "nccl/step.cuh"

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  try {
    int rank = 0;
    int ranks = 1;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    // Ranks of one node take its GPUs in turn.
    MPI_Comm node = MPI_COMM_NULL;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
    int rank_in_node = 0;
    MPI_Comm_rank(node, &rank_in_node);
    MPI_Comm_free(&node);
    int devices = 0;
    orrery::detail::check_cuda(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
    orrery::detail::check_cuda(cudaSetDevice(rank_in_node % devices), "cudaSetDevice");

    ncclUniqueId id{};
    if (rank == 0) {
      if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess) {
        throw std::runtime_error{"ncclGetUniqueId: " + orrery::nccl::describe(result)};
      }
    }
    MPI_Bcast(&id, sizeof(id), MPI_BYTE, 0, MPI_COMM_WORLD);
    const orrery::nccl::communicator comm = orrery::nccl::join(id, rank, ranks);
    run_step(comm.get());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
}
