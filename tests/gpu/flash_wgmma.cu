// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tensor-core kernel by warpgroups on a GPU of compute capability 9.0: what its tests on the emulated device say,
// what it is made of one by one, and larger sizes. On other GPUs the cases run by mma.sync.
#include <cuda_runtime_api.h>

#include "orrery/device/gpu.cuh"

#include "gpu/managed_memory.hpp"

namespace cuda_test {
using tested = orrery::detail::gpu;
}

#include "device/warpgroup_cases.hpp"
#include "kernel/cuda/flash_wgmma_cases.hpp"

TEST_CASE_TEMPLATE("wgmma: thousands of tokens", T, bfloat16, float16) {
  const oracle::shape shape{1, 1500, 1700, 4, 2, 64, 64, 0.125};
  const auto p = oracle::random_problem<T>(shape, 50);
  for (const std::int64_t offset : {2000, 200, -300}) {
    plan how = cut(shape, 2, 3);
    check<T>(p, any_mask{kind::causal, false, {offset}}, how);
    how.one_call = true;
    how.layout = kernel_test::order::batch_head_sequence;
    check<T>(p, any_mask{kind::causal, false, {offset}}, how);
  }
}

TEST_CASE("wgmma: a thousand calls give the same bits") {
  const oracle::shape shape{1, 300, 900, 2, 1, 128, 128, 0.09};
  const auto p = oracle::random_problem<bfloat16>(shape, 51);
  const any_mask mask{kind::causal, false, {600}};
  const plan how = cut(shape, 1, 1);
  const auto first = kernel_test::run<kernel<bfloat16, 256>>(p, mask, how);
  int different = 0;
  for (int i = 0; i < 1000; ++i) {
    const auto again = kernel_test::run<kernel<bfloat16, 256>>(p, mask, how);
    different += again.out == first.out && again.lse == first.lse && again.grad_q == first.grad_q &&
                         again.grad_k == first.grad_k && again.grad_v == first.grad_v
                     ? 0
                     : 1;
  }
  CHECK(different == 0);
}
