// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tensor-core kernel on a GPU: what its tests on the emulated device say, and larger sizes.
#include <cuda_runtime_api.h>

#include "orrery/device/gpu.cuh"

#include "gpu/managed_memory.hpp"

namespace cuda_test {
using tested = orrery::detail::gpu;
}

#include "kernel/cuda/flash_cases.hpp"

TEST_CASE_TEMPLATE("thousands of tokens", T, bfloat16, float16) {
  const oracle::shape shape{1, 1500, 1700, 4, 2, 64, 64, 0.125};
  const auto p = oracle::random_problem<T>(shape, 50);
  for (const orrery::causal mask : {orrery::causal{2000}, orrery::causal{200}, orrery::causal{-300}}) {
    plan how = cut(shape, 2, 3);
    check<T>(p, mask, how);
    how.one_call = true;
    how.layout = kernel_test::order::batch_head_sequence;
    check<T>(p, mask, how);
  }
}
