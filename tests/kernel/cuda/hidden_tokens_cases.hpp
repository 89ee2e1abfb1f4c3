// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Tokens that a mask hides may hold anything, in the kernels of devices, too.
#include <cstdint>

#include <doctest/doctest.h>

#include "orrery/kernel/device_flash.cuh"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/tensor/float16.hpp"

#include "kernel/hidden_tokens.hpp"
#include "kernel/problem.hpp"
#include "support/oracle.hpp"

namespace {

using kernel_test::hiding_mask;

using flash = orrery::device_flash<orrery::bfloat16, 64, cuda_test::tested>;
using reference = orrery::device_reference<orrery::bfloat16, cuda_test::tested>;

/// The most rows or columns of a tile of device_flash.
constexpr std::int64_t largest_tile = 128;

}  // namespace

TEST_CASE("what tokens hold that a mask hides from everybody changes nothing: device_flash") {
  for (const hiding_mask& mask : kernel_test::hiding_masks) {
    const std::int64_t heads = mask.padding ? 1 : 2;
    kernel_test::check_hidden_tokens<flash>({1, 150, 190, heads, 1, 8, 12, 0.25}, mask);
  }
}

TEST_CASE("what tokens hold that a mask hides from everybody changes nothing: device_reference") {
  for (const hiding_mask& mask : kernel_test::hiding_masks) {
    kernel_test::check_hidden_tokens<reference>({1, 70, 120, 2, 1, 8, 12, 0.25}, mask);
  }
}

TEST_CASE("what tokens hold that a mask hides from everybody changes nothing: the largest head dimensions") {
  kernel_test::check_hidden_tokens<orrery::device_flash<orrery::bfloat16, 256, cuda_test::tested>>(
      {1, 80, 90, 1, 1, 250, 200, 0.1}, {hiding_mask::kind::causal, -10, true});
}

TEST_CASE("NaN in a token that is seen reaches all that see it") {
  for (const hiding_mask& mask : kernel_test::hiding_masks) {
    kernel_test::check_visible_nan<flash>({1, 290, 290, 1, 1, 8, 8, 0.25}, mask, largest_tile);
    kernel_test::check_visible_nan<reference>({1, 60, 60, 2, 1, 8, 12, 0.25}, mask, 0);
  }
}
