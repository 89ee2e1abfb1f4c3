// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The same as topology.cpp, with ranks that are streams of CUDA devices. By default all ranks share one device, whose
// links are then its own memory; `--devices N` lets them take N devices in turn.
#include "orrery/transport/device.hpp"

#include "common/device_name.hpp"
#include "topology/device_ranks.cuh"
#include "topology/run.hpp"

namespace {

int run(const std::vector<std::string>& arguments) {
  int devices = 1;
  std::vector<std::string> others;
  try {
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      if (arguments[i] != "--devices") {
        others.push_back(arguments[i]);
        continue;
      }
      devices = bench::flag_values::small("--devices", ++i < arguments.size() ? arguments[i] : "", 1, 64);
    }
  } catch (const std::invalid_argument& e) {
    std::cerr << "bench_topology_cuda: " << e.what() << '\n';
    return 2;
  }
  return bench::run(bench::device_ranks<orrery::detail::gpu>{devices, bench::device_name(0)}, others);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& e) {
    std::cerr << "bench_topology_cuda: " << e.what() << '\n';
    return 1;
  }
}
