// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What the kernels and the operator reach on a CUDA device, beside the device's own ceilings, measured in the same run:
// see --help, and gpu.py, which adds PyTorch's kernels and makes a table of all.
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/transport/device.hpp"

#include "common/device_name.hpp"
#include "gpu/measure.cuh"

namespace {

constexpr const char* usage = R"(bench_gpu: what kernels and operators reach on a CUDA device. Medians; one row a line.

  --quick          small sizes: seconds instead of minutes
  --only A,B,...   of kernel (attention alone), movement (packing and sums between tiles), operator (8 ranks on the
                   device beside one call of their kernel) and host (what a step costs the host's threads); all of them
                   if left out. The device's ceilings are always measured.
  --json FILE      write the same rows there
  --help           this text
)";

int run(const std::vector<std::string>& arguments) {
  bench::gpu_sizes sizes;
  std::vector<std::string> sections = bench::gpu_sections();
  std::ofstream json;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& flag = arguments[i];
    if (flag == "--help") {
      std::fputs(usage, stdout);
      return 0;
    }
    if (flag == "--quick") {
      sizes = bench::gpu_sizes::quick();
      continue;
    }
    if (flag != "--only" && flag != "--json") throw std::invalid_argument{flag + " is no flag: see --help"};
    const std::string value = ++i < arguments.size() ? arguments[i] : "";
    if (flag == "--only") {
      sections = bench::sections_named(value);
    } else {
      json.open(value);
      if (!json) throw std::invalid_argument{"--json: cannot write \"" + value + "\""};
    }
  }
  bench::report all;
  all.set("device", bench::device_name(0));
  std::printf("# %s\n", bench::device_name(0).c_str());
  orrery::detail::check_cuda(cudaSetDevice(0), "cudaSetDevice");
  bench::measure_gpu<orrery::detail::gpu>(all, sizes, sections);
  if (json.is_open()) {
    all.write(json);
    json.close();
    if (!json) throw std::runtime_error{"--json: the file could not be written"};
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::invalid_argument& wrong) {
    std::fprintf(stderr, "bench_gpu: %s\n", wrong.what());
    return 2;
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "bench_gpu: %s\n", failure.what());
    return 1;
  }
}
