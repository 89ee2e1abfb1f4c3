// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

namespace orrery::detail {

/// Sixteen aligned bytes: the widest memory access of a thread.
struct alignas(16) vector_words {
  std::uint32_t word[4];
};

/// Two adjacent floats in memory, aligned to 8 bytes.
struct alignas(8) float_pair {
  float of[2];
};

/// The device that kernels run on by default: the current CUDA device. Defined in device/gpu.cuh.
///
/// Kernels are functors, `body(threads)`, and use no syntax of CUDA: everything that one thread can do is a member of
/// `threads` (see `gpu_threads`, which implements it by PTX). `Device::launch<threads>(context, blocks, shared_bytes,
/// body)` enqueues one call for each thread of each block. Kernels that use warpgroups need more (see
/// `gpu_warpgroup_threads`): `Device::launch_warpgroups` enqueues them if `Device::has_warpgroups(shared_bytes)`, and
/// `Device::map` makes the tensor maps that they copy by. So the same source runs on any implementation of these types.
/// The tests have one that runs the threads of a block one after the other on the host, and checks their use of shared
/// memory.
struct gpu;

}  // namespace orrery::detail
