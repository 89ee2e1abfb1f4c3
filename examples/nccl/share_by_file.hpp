// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>

#include <nccl.h>

#include <orrery/transport/detail/deadline.hpp>
#include <orrery/transport/nccl.hpp>

/// NCCL's id for all ranks, by a file that all of them see and that is not there yet: rank 0 makes it, the others wait
/// for it, so many seconds. Throws if it does not appear.
inline ncclUniqueId share_by_file(const std::string& path, int rank, double seconds) {
  ncclUniqueId id;
  if (rank == 0) {
    if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess) {
      throw std::runtime_error{"ncclGetUniqueId: " + orrery::nccl::describe(result)};
    }
    std::ofstream file{path + ".new", std::ios::binary};
    file.write(id.internal, sizeof(id.internal));
    file.close();
    if (!file) throw std::runtime_error{path + ".new cannot be written"};
    std::filesystem::rename(path + ".new", path);  // so that nobody reads half of it
    return id;
  }
  const auto deadline = orrery::detail::deadline_in(seconds);
  while (!std::filesystem::exists(path)) {
    if (std::chrono::steady_clock::now() > deadline)
      throw std::runtime_error{path + " does not appear: where is rank 0?"};
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  std::ifstream{path, std::ios::binary}.read(id.internal, sizeof(id.internal));
  return id;
}
