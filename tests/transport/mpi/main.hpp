// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <string>

#include "orrery/transport/mpi.hpp"

namespace mpi_test {

/// What a world says before MPI_Init.
inline std::string& before_initialisation() {
  static std::string message;
  return message;
}

[[nodiscard]] inline int rank() {
  int of_world = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &of_world);
  return of_world;
}
[[nodiscard]] inline int ranks() {
  int of_world = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &of_world);
  return of_world;
}

/// The thread level that MPI was initialised for.
[[nodiscard]] inline int thread_level() {
  int level = MPI_THREAD_SINGLE;
  MPI_Query_thread(&level);
  return level;
}

/// What `work` throws, if it is an `Expected`; "nothing" if it throws nothing.
template <class Expected, class Work>
[[nodiscard]] std::string message_of_exception(const Work& work) {
  try {
    work();
  } catch (const std::exception& e) {
    const bool expected = dynamic_cast<const Expected*>(&e) != nullptr;
    return (expected ? "" : "another exception: ") + std::string{e.what()};
  }
  return "nothing";
}

[[nodiscard]] inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace mpi_test
