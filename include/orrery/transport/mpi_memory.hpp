// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <mpi.h>

#include "orrery/transport/host_memory.hpp"

/// What becomes of memory when a communication is given up.
namespace orrery::mpi {

/// What must stay in memory until the process ends, because a communication that was given up may still use it.
inline std::vector<std::shared_ptr<void>>& given_up() {
  static std::vector<std::shared_ptr<void>> kept;
  return kept;
}

/// Addresses that such a communication may read or write.
inline std::vector<const std::byte*>& still_in_use() {
  static std::vector<const std::byte*> addresses;
  return addresses;
}

/// Host memory of a plan. It stays until the process ends if a communication that was given up may still use it.
class memory {
 public:
  memory() = default;
  explicit memory(std::int64_t bytes) : held_{new host_memory{bytes}, release{bytes}} {}
  [[nodiscard]] std::byte* data() const noexcept { return held_ == nullptr ? nullptr : held_->data(); }

 private:
  struct release {
    std::int64_t bytes;
    void operator()(host_memory* held) const {
      std::unique_ptr<host_memory> mine{held};
      for (const std::byte* used : still_in_use()) {
        if (std::less{}(used, held->data()) || !std::less{}(used, held->data() + bytes)) continue;
        given_up().push_back(std::move(mine));
        return;
      }
    }
  };
  std::unique_ptr<host_memory, release> held_;
};

[[nodiscard]] inline bool running() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

}  // namespace orrery::mpi
