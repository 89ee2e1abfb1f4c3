// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// One source file, results.cpp, with ORRERY_COMPILED and without it, in one program: they must give the same bits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace compiled_test {

/// Which operator results.cpp runs.
struct question {
  std::string topology;  ///< ring or wallfacer<2>
  std::string mask;      ///< full, causal, documents & window, or own: one that the library does not know
  int world = 4;
};

/// The bytes of out, lse and all gradients of all ranks. Throws what the operator throws.
std::vector<unsigned char> with_library(const question& asked);
std::vector<unsigned char> without_library(const question& asked);

}  // namespace compiled_test
