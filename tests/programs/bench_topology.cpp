// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The benchmarks' own logic on emulated devices: what they report is checked, and how fast it is means nothing.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "device/enqueued.hpp"
#include "device/runtime_double.hpp"
#include "device/streamed_device.hpp"
#include "gpu/measure.cuh"
#include "topology/device_ranks.cuh"
#include "topology/run.hpp"

namespace {

std::string contents(const std::string& file) {
  std::ifstream stream{file};
  return {std::istreambuf_iterator<char>{stream}, {}};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("the topology microbenchmark over streams of devices") {
  cuda_double::reset();
  const auto file = std::filesystem::temp_directory_path() / "orrery_bench_topology_cuda.json";
  const std::string json = file.string();
  const bench::device_ranks<cuda_test::streamed_device> ranks{1, "an emulated device"};
  CHECK(bench::run(ranks, {"-b",      "12", "-e",    "12",         "-n",           "1",      "-w",
                           "0",       "-r", "2",     "--topology", "ring,ulysses", "--pass", "both",
                           "--heads", "2",  "--dim", "8",          "--json",       json}) == 0);
  const std::string rows = contents(json);
  std::filesystem::remove(file);
  INFO(rows);
  CHECK(contains(rows, "\"transport\": \"device\""));
  CHECK(contains(rows, "\"instructions\": \"an emulated device\""));
  CHECK(contains(rows, "\"dtype\": \"bfloat16\", \"kernel\": \"device_flash\""));
  for (const char* topology : {"ring", "ulysses"}) {
    for (const char* pass : {"forward", "circulate_keys"}) {
      CHECK(contains(rows, "\"topology\": \"" + std::string{topology} + "\", \"placement\": \"teams\", \"pass\": \"" +
                               pass + "\", \"tokens\": 12"));
    }
  }
  // A shard of K and V of 6 tokens, 2 heads of 8, in 16 bits; errors that are measured.
  CHECK(contains(rows, "\"bytes_sent\": " + std::to_string(2 * 6 * 2 * 8 * 2)));
  CHECK(contains(rows, "\"max_error\": 0.0"));
  CHECK_FALSE(contains(rows, "\"max_error\": null"));
  CHECK(bench::run(ranks, {"--dtype", "float"}) == 2);
  CHECK(bench::run(ranks, {"--dim", "256"}) == 2);
  cuda_test::enqueued_work::forget();
  CHECK(cuda_double::faults().empty());
  CHECK(cuda_double::leaks() == "");
}

TEST_CASE("what bench_gpu measures") {
  cuda_double::reset();
  bench::gpu_sizes sizes;
  sizes.times = sizes.operator_times = sizes.enqueued_times = sizes.product_blocks = 1;
  sizes.operator_heads = 1;
  sizes.warm_up = 0;
  sizes.copied_bytes = 2 * 32 * 128 * 4;
  sizes.products = 2;
  sizes.kernel_tokens = {8};
  sizes.kernel_dims = {16};
  sizes.kernel_elements = 8 * 16;
  sizes.checked_tokens = 20;
  sizes.operator_tokens = sizes.enqueued_tokens = 8;
  sizes.operator_ranks = 2;
  sizes.topologies = {orrery::ring{}};
  sizes.operator_dim = 8;
  bench::report all;
  all.set("device", "an \"emulated\" device");
  bench::measure_gpu<cuda_test::streamed_device>(all, sizes, bench::gpu_sections());
  std::ostringstream json;
  all.write(json);
  const std::string rows = json.str();
  INFO(rows);
  CHECK(rows.find("{\"device\": \"an \\\"emulated\\\" device\",") == 0);
  const auto count = [&](const std::string& part) {
    int found = 0;
    for (std::size_t at = rows.find(part); at != std::string::npos; at = rows.find(part, at + 1)) ++found;
    return found;
  };
  CHECK(count("\"section\": \"ceiling\"") == 2);
  CHECK(count("\"section\": \"kernel\"") == 2 * 2);
  CHECK(count("\"section\": \"movement\"") == 6);
  CHECK(count("\"section\": \"operator\"") == 2 * 2);
  CHECK(count("\"section\": \"host\"") == 2);
  // A millisecond each, says the double: the bytes and the flop are what is left.
  CHECK(contains(rows, "\"of\": \"copy\", \"bytes\": 32768, \"gb_per_s\": 0.065536"));
  CHECK(contains(rows, "\"tflop_per_s\": 0.000524288"));  // 8 warps, 2 rounds of 8 products of 4096 flop
  CHECK(contains(rows,
                 "\"mask\": \"causal\", \"dim\": 16, \"tokens\": 8, \"heads\": 1, \"ms\": 1, "
                 "\"tflop_per_s\": 2.304e-06"));  // forward: 36 pairs
  CHECK(contains(rows,
                 "\"mask\": \"full\", \"dim\": 16, \"tokens\": 8, \"heads\": 1, \"ms\": 1, "
                 "\"tflop_per_s\": 1.024e-05"));  // backward: 64 pairs
  CHECK(contains(rows, "\"mb\": 0.098304, \"ms\": 1, \"gb_per_s\": 0.098304, \"percent_of_copy\": 150}"));  // add
  CHECK(count("\"max_error\": 0.00") == 4);  // of 16 bits, and none that is infinite or missing
  cuda_test::enqueued_work::forget();
  CHECK(cuda_double::faults().empty());
  CHECK(cuda_double::leaks() == "");
  CHECK(bench::sections_named("host,kernel") == std::vector<std::string>{"host", "kernel"});
  CHECK_THROWS_WITH(bench::sections_named("kernels"),
                    "--only names \"kernels\", expected some of kernel, movement, operator, host");
}
