// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// Marks what runs on a device. The only macro of the CUDA kernels, and this header its only home: a function so marked
/// is a device function for nvcc and an ordinary one for every other compiler.
#ifdef __CUDACC__
#define ORRERY_DEVICE __device__
#else
#define ORRERY_DEVICE
#endif

namespace orrery {

/// Sixteen bytes, aligned: the widest access of a thread.
struct alignas(16) vector_words {
  std::uint32_t word[4];
};

/// The device that kernels run on by default, see `kernel/gpu.cuh`.
///
/// Kernels are functors, `body(threads)`, and never name the device's own syntax: what one thread may do is a member of
/// `threads` (compare `gpu_threads`, which does it by PTX), and `Device::launch<threads>(context, blocks, shared_bytes,
/// body)` enqueues one call for each thread of each block. So the same source runs wherever somebody writes these two
/// types; the tests have a pair that runs a block's threads in turn on the host and watches their use of shared memory.
struct gpu;

}  // namespace orrery
