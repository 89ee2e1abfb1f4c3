// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "device_ranks.cuh"
#include "devices.hpp"

train::training train::training_on_devices() {
  const orrery::device::group one{1, {}};  // throws if there is no device
  return [](const std::string& name, const orrery::any_topology& topology, int ranks, const options& o,
            const training_text& text) {
    const device_ranks<orrery::detail::gpu> on;
    if (o.dtype == "bfloat16") return train_with<float, orrery::bfloat16>(on, name, topology, ranks, o, text);
    return o.dtype == "float" ? train_with<float>(on, name, topology, ranks, o, text)
                              : train_with<double>(on, name, topology, ranks, o, text);
  };
}
