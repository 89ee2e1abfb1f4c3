// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The benchmarks' own logic on emulated devices: what they report is checked, and how fast it is means nothing.
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "../../bench/topology/device_ranks.cuh"
#include "../../bench/topology/run.hpp"
#include "cuda/enqueued.hpp"
#include "cuda/runtime_double.hpp"
#include "cuda/streamed_device.hpp"

namespace {

std::string contents(const std::string& file) {
  std::ifstream stream{file};
  return {std::istreambuf_iterator<char>{stream}, {}};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("the topology microbenchmark over streams of devices") {
  cuda_double::reset();
  const std::string json = "bench_topology_cuda.json";
  const bench::device_ranks<cuda_test::streamed_device> ranks{1, "an emulated device"};
  CHECK(bench::run(ranks, {"-b",      "12", "-e",    "12",         "-n",           "1",      "-w",
                           "0",       "-r", "2",     "--topology", "ring,ulysses", "--pass", "both",
                           "--heads", "2",  "--dim", "8",          "--json",       json}) == 0);
  const std::string rows = contents(json);
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
