// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

namespace orrery::detail {

/// Sixteen bytes, aligned: the widest access of a thread.
struct alignas(16) vector_words {
  std::uint32_t word[4];
};

/// The device that kernels run on by default, see `device/gpu.cuh`.
///
/// Kernels are functors, `body(threads)`, and never name the device's own syntax: what one thread may do is a member of
/// `threads` (compare `gpu_threads`, which does it by PTX), and `Device::launch<threads>(context, blocks, shared_bytes,
/// body)` enqueues one call for each thread of each block. Kernels by warpgroups use more (`gpu_warpgroup_threads`):
/// `Device::launch_warpgroups` enqueues them where `Device::has_warpgroups(shared_bytes)`, and `Device::map` makes the
/// tensor maps that they copy by. So the same source runs wherever somebody writes these types; the tests have some
/// that run a block's threads in turn on the host and watch their use of shared memory.
struct gpu;

}  // namespace orrery::detail
