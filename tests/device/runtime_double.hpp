// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

/// A double of the CUDA runtime: the functions that the library calls, on the host's memory, to be linked in the place
/// of libcudart. It is a model to test ordering with, not an emulator of kernels: these are functions of the host that
/// are enqueued by cudaLaunchHostFunc.
///
/// - Nothing runs before it must: work waits in its stream until a call synchronises, and then runs in the order of
/// each
///   stream and otherwise in a random one, which the seed decides. Now and then some of it runs earlier.
/// - Device memory can be touched while such work runs, and is protected otherwise: a host that reads a result without
///   asking a stream for it ends with a segmentation fault. It begins as NaN, whatever its type.
/// - Every copy, memset and announced function is compared with all others that touch the same bytes: two of which one
///   writes, and of which neither is ordered before the other by streams, events or a synchronisation, are a race,
///   whatever the order in which they happen to run. So are accesses outside of allocations, and freeing what may be in
///   use. What synchronises one thread of the host is taken to be known to all.
/// - Calls can be made to fail, and waits to be ignored.
/// - A query by another thread ends a capture in the global mode, unless that thread has chosen the relaxed one.
namespace cuda_double {

struct settings {
  std::uint64_t seed = 1;
  std::vector<std::pair<int, int>> compute_capabilities{{9, 0}};  ///< of each device
  bool peer_access = true;
  std::size_t memory = std::size_t{256} << 20;  ///< of each device
  int shared_bytes = 227 * 1024;                ///< that a block can be given
};

/// Forgets all faults, calls and failures to come. There must be no streams, events and allocations.
void reset(const settings& how = {});

/// The n-th call (from 1, counted from now on) of a function returns `error`; if sticky, so do all calls after it.
void fail(const std::string& function, int nth, cudaError_t error, bool sticky = false);
/// The n-th cudaStreamWaitEvent (from 1, counted from now on) succeeds, and waits for nothing.
void ignore_wait(int nth);
/// How often a function has been called since `reset`.
[[nodiscard]] int calls(const std::string& function);

/// Races and misuse, as messages, since `reset`; the first hundred.
[[nodiscard]] std::vector<std::string> faults();
/// Empty, or what is still allocated.
[[nodiscard]] std::string leaks();

struct bytes {
  const void* begin = nullptr;
  const void* end = nullptr;
};
struct accesses {
  std::string name;
  std::vector<bytes> reads;
  std::vector<bytes> writes;
};
/// Says what the next function that this thread enqueues by cudaLaunchHostFunc will touch.
void announce(accesses what);

/// Enqueues work of a library that is itself a double. `step` is called when everything before it in the stream is
/// done, again and again until it returns true; it may find that it must wait for other streams.
[[nodiscard]] cudaError_t enqueue(cudaStream_t stream, accesses what, std::function<bool()> step);
/// Threads that wait for streams look again: what such work waits for has happened otherwise.
void wake();
/// What cudaDeviceGetStreamPriorityRange says.
inline constexpr int greatest_priority = -5;
[[nodiscard]] int priority_of(cudaStream_t stream);
/// Waits until no stream of the device has work left and `also()` holds, at most so many seconds. Returns true if so.
/// `also` is called with the lock of the double held.
[[nodiscard]] bool becomes_idle(int device, const std::function<bool()>& also, double seconds);

}  // namespace cuda_double
