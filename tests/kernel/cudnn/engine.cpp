// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/kernel/device_cudnn_graphs.hpp"
// As every header, twice.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "orrery/kernel/device_cudnn_graphs.hpp"

#include "kernel/cudnn/engine.hpp"

namespace cudnn_test {

class engine::hidden : public orrery::cudnn_graphs {};

engine::engine() : hidden_{std::make_unique<hidden>()} {}
engine::~engine() = default;
int engine::plan(const orrery::detail::cudnn_call& call) { return hidden_->plan(call); }
std::int64_t engine::workspace_bytes(int plan) const { return hidden_->workspace_bytes(plan); }
void engine::run(int plan, const orrery::device_context& context, const orrery::detail::cudnn_tensors& tensors,
                 void* workspace) {
  hidden_->run(plan, context, tensors, workspace);
}

std::string unsupported(const orrery::detail::cudnn_call& call, int compute_capability) {
  // Of an H100, as cuDNN says of one (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION), but for the capability.
  const std::string device = "{\"deviceVer\": " + std::to_string(10 * compute_capability) +
                             R"(, "cudaDeviceId": 0, "driverVer": 13000, "multiProcessorCount": 132,
    "smClockRateKHz": 1980000, "memClockRateKHz": 2619000, "l2CacheSize": 52428800, "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024,
    "maxRegistersPerSM": 65536, "regsPerBlock": 65536, "pciDeviceId": 0, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048, "isTccDriver": 0, "supportCoopLaunch": 1, "totalGlobalMem": 85000000000,
    "deviceName": "NVIDIA H100 80GB HBM3", "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64]})";
  const auto described = std::make_shared<cudnn_frontend::DeviceProperties>();
  const std::vector<std::uint8_t> bytes(device.begin(), device.end());
  if (const auto error = described->deserialize(bytes); error.is_bad())
    return "the device's description: " + error.err_msg;
  cudnn_frontend::graph::Graph graph;
  graph.set_device_properties(described);
  graph.set_sm_version(compute_capability);
  orrery::detail::describe_cudnn_call(graph, call);
  return orrery::detail::supported_by_cudnn(graph, nullptr).err_msg;
}

std::string sentence_without_device() {
  try {
    const orrery::cudnn_graphs graphs;
  } catch (const orrery::cudnn_error& e) {
    return e.what();
  }
  return "";
}

}  // namespace cudnn_test
