// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/device/handles.hpp"
#include "orrery/transport/nccl.hpp"

namespace nccl_test {

namespace nccl = orrery::nccl;

/// Calls body(world) on ranks that are threads, as a trainer would: each with a device, a communicator and a stream of
/// its own. Throws what the first of them throws.
template <class Body>
void run_each(int ranks, const std::function<nccl::options(int)>& options, const Body& body) {
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        orrery::detail::check_cuda(cudaSetDevice(rank), "cudaSetDevice");
        const orrery::detail::cuda_stream stream;
        const nccl::communicator comm = nccl::join(id, rank, ranks, 20);
        nccl::world world{comm.get(), stream.get(), options(rank)};
        body(world);
        world.synchronize();
      } catch (...) {
        const std::lock_guard lock{mutex};
        if (first == nullptr) first = std::current_exception();
      }
    });
  }
  for (std::thread& one : threads) one.join();
  if (first != nullptr) std::rethrow_exception(first);
}
template <class Body>
void run(int ranks, const nccl::options& options, const Body& body) {
  run_each(
      ranks, [&](int) { return options; }, body);
}

}  // namespace nccl_test
