// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tensor-core kernel on the emulated device: each of its tests is also one of its use of shared memory, barriers
// and copies, since that device throws where they are wrong.
#include <stdexcept>

#include <doctest/doctest.h>

#include "cuda/emulator.hpp"

namespace cuda_test {
using tested = emulator::device;
}

#include "cuda/flash_cases.hpp"

TEST_CASE("no two rows of a matrix share a bank, whatever the head dimension") {
  for (const std::int64_t dim : {64, 96, 128, 192, 256}) {
    const oracle::shape shape{1, 16, 16, 1, 1, dim, dim == 192 ? 128 : dim, 0.1};
    emulator::counted = {};
    check<bfloat16, 256>(oracle::random_problem<bfloat16>(shape, 40), orrery::causal{}, cut(shape, 1, 1));
    CHECK(emulator::counted.matrix_loads > 0);
    CHECK(emulator::counted.matrix_replays == 0);
  }
}

TEST_CASE("what the kernel or the device cannot do is refused before anything is enqueued") {
  const oracle::shape shape{1, 4, 4, 1, 1, 65, 8, 1.0};
  const auto p = oracle::random_problem<bfloat16>(shape, 11);
  const auto before = emulator::counted.blocks;
  CHECK_THROWS_WITH_AS(kernel_test::run<kernel<bfloat16>>(p, any_mask{}, cut(shape, 1, 1)),
                       "orrery: head dimension is 65, but kernel device_flash<bfloat16> is compiled up to 64; its "
                       "second template argument goes up to 256",
                       std::invalid_argument);
  const oracle::shape small{1, 4, 4, 1, 1, 8, 8, 1.0};
  const auto fits = oracle::random_problem<bfloat16>(small, 12);
  const auto limits = emulator::device::limits;
  emulator::device::limits.compute_capability = 75;
  CHECK_THROWS_AS(kernel_test::run<kernel<bfloat16>>(fits, any_mask{}, cut(small, 1, 1)), std::invalid_argument);
  emulator::device::limits = limits;
  emulator::device::limits.shared_bytes = 20000;
  CHECK_THROWS_AS(kernel_test::run<kernel<bfloat16>>(fits, any_mask{}, cut(small, 1, 1)), std::invalid_argument);
  emulator::device::limits = limits;
  CHECK(emulator::counted.blocks == before);
  CHECK(kernel<bfloat16>::max_head_dim == 64);
}
