// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Random calls on ranks that are threads (see soak.hpp). By hand, under a sanitizer:
//
//     test_soak --calls 10000 [--seconds S] [--seed N] [--growth MIB]
#include "orrery/transport/threads.hpp"

#include <cstdio>
#include <exception>

#include "soak/soak.hpp"

int main(int argc, char** argv) {
  try {
    const auto run = [](int ranks, const auto& body) { orrery::threads::run(ranks, {.deadline = 300}, body); };
    std::fputs(soak::run(soak::parse(argc, argv), 12, run, [](bool more) { return more; }).c_str(), stdout);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
