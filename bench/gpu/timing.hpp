// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include <cuda_runtime_api.h>

#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"

#include "common/statistics.hpp"
#include "sizes.hpp"

namespace bench {

/// An event that knows when it happened.
class timing_event {
 public:
  timing_event() { orrery::detail::check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  timing_event(const timing_event&) = delete;
  timing_event& operator=(const timing_event&) = delete;
  ~timing_event() { orrery::detail::ignore_cuda(cudaEventDestroy(event_)); }

  void record(cudaStream_t stream) const {
    orrery::detail::check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord");
  }
  /// Waits for it.
  [[nodiscard]] double seconds_since(const timing_event& begin) const {
    float milliseconds = 0;
    orrery::detail::check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize");
    orrery::detail::check_cuda(cudaEventElapsedTime(&milliseconds, begin.event_, event_), "cudaEventElapsedTime");
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// The device's seconds for what enqueue() enqueues on the stream: the median.
template <class Enqueue>
double seconds_on_device(cudaStream_t stream, const gpu_sizes& sizes, const Enqueue& enqueue) {
  const timing_event begin, end;
  std::vector<double> seconds;
  for (int i = -sizes.warm_up; i < sizes.times; ++i) {
    begin.record(stream);
    enqueue();
    end.record(stream);
    const double one = end.seconds_since(begin);
    if (i >= 0) seconds.push_back(one);
  }
  return median(seconds);
}

}  // namespace bench
