// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The trainer of the examples on emulated devices: the loss curve of one rank on the host.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/reference.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"

#include "device/enqueued.hpp"
#include "device/runtime_double.hpp"
#include "device/streamed_device.hpp"
#include "train/device_ranks.cuh"
#include "train/on_threads.hpp"
#include "train/training.hpp"

namespace {

struct host_ranks : train::on_threads {
  template <class S>
  using kernel = orrery::reference<S>;
};

using emulated_ranks = train::device_ranks<cuda_test::streamed_device>;

train::options tiny() {
  train::options o;
  o.steps = 3;
  o.batch = 2;
  o.length = 21;
  o.shape.layers = 1;
  o.shape.width = 16;
  o.quiet = true;
  return o;
}

template <class T>
std::vector<double> on_one_host(const train::options& o) {
  const train::training_text text{{__FILE__}, o.steps, o.batch, o.length, o.seed};
  return train::train_with<T>(host_ranks{}, "one rank", orrery::ring{}, 1, o, text).losses;
}

template <class T, class S = T>
std::vector<double> on_devices(const orrery::any_topology& topology, int ranks, const train::options& o) {
  const train::training_text text{{__FILE__}, o.steps, o.batch, o.length, o.seed};
  cuda_double::reset({.seed = static_cast<std::uint64_t>(ranks), .compute_capabilities = {{9, 0}, {9, 0}}});
  const auto losses = train::train_with<T, S>(emulated_ranks{}, topology.name(), topology, ranks, o, text).losses;
  cuda_test::enqueued_work::forget();
  CHECK(cuda_double::faults().empty());
  CHECK(cuda_double::leaks() == "");
  return losses;
}

double distance(const std::vector<double>& one, const std::vector<double>& other) {
  REQUIRE(one.size() == other.size());
  double largest = 0;
  for (std::size_t i = 0; i < one.size(); ++i) largest = std::fmax(largest, std::abs(one[i] - other[i]));
  return largest;
}

}  // namespace

TEST_CASE("a training on devices has the losses of one on the host") {
  train::options o = tiny();
  const std::vector<double> expected = on_one_host<double>(o);
  CHECK(expected.front() > 5);  // the logarithm of 256, about
  for (const orrery::any_topology& topology : std::vector<orrery::any_topology>{
           orrery::ring{}, orrery::wallfacer<2>{}, orrery::concentric<2>{}, orrery::ulysses{}}) {
    o.operand_messages = o.operand_messages == orrery::operand_messages::per_block
                             ? orrery::operand_messages::per_tensor
                             : orrery::operand_messages::per_block;
    INFO(topology.name());
    CHECK(distance(expected, on_devices<double>(topology, 4, o)) < 1e-13);
  }
  CHECK(distance(expected, on_devices<double>(orrery::ring{}, 1, o)) < 1e-13);
}

TEST_CASE("a training whose attention stores bfloat16 goes the same way") {
  train::options o = tiny();
  o.steps = 2;
  o.batch = 1;
  const std::vector<double> expected = on_one_host<float>(o);
  const double apart = distance(expected, on_devices<float, orrery::bfloat16>(orrery::ring{}, 2, o));
  CHECK(apart > 0);
  CHECK(apart < 0.01);
}
