// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// On a GPU.
#include <cuda_runtime_api.h>

#include "orrery/device/gpu.cuh"

#include "gpu/managed_memory.hpp"

namespace cuda_test {
using tested = orrery::detail::gpu;
}

#include "kernel/cuda/hidden_tokens_cases.hpp"
