// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <cuda_runtime_api.h>

#include "orrery/attention.hpp"
#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"

#include "common/problem.hpp"

namespace bench {

/// A contiguous tensor of the host, or rows, and the same in device memory.
template <class View>
class device_copy {
 public:
  explicit device_copy(const View& of_host)
      : host_{of_host}, bytes_{of_host.size() * std::int64_t{sizeof(typename View::element)}}, device_{of_host} {
    if (bytes_ > 0) device_.data = reinterpret_cast<typename View::element*>(memory_.data());
  }

  [[nodiscard]] const View& view() const { return device_; }
  void bring(cudaStream_t stream) const { copy(device_.data, host_.data, cudaMemcpyHostToDevice, stream); }
  void fetch(cudaStream_t stream) const { copy(host_.data, device_.data, cudaMemcpyDeviceToHost, stream); }
  /// Every element becomes NaN, whatever its type: results that are left out are found out.
  void poison(cudaStream_t stream) const {
    if (bytes_ == 0) return;
    orrery::detail::check_cuda(cudaMemsetAsync(memory_.data(), 0xff, static_cast<std::size_t>(bytes_), stream),
                               "cudaMemsetAsync");
  }

 private:
  void copy(void* to, const void* from, cudaMemcpyKind kind, cudaStream_t stream) const {
    if (bytes_ == 0) return;
    orrery::detail::check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes_), kind, stream),
                               "cudaMemcpyAsync");
  }

  View host_;
  std::int64_t bytes_;
  orrery::detail::device_memory memory_{bytes_};
  View device_;
};

/// A rank's shard (compare `shard`) whose tensors are in the memory of its device; calls only enqueue.
template <class T>
class device_shard : public calls_on<device_shard<T>> {
 public:
  device_shard(cudaStream_t stream, const orrery::attention_shape& shape, const orrery::token_positions& positions)
      : stream_{stream}, host_{shape, positions} {
    for (const auto* one : {&q_, &k_, &v_, &grad_out_}) one->bring(stream);
    for (const auto* one : {&out_, &grad_q_, &grad_k_, &grad_v_}) one->poison(stream);
    lse_.poison(stream);
    delta_.poison(stream);
    wait();
  }

  auto q() const { return q_.view(); }
  auto k() const { return k_.view(); }
  auto v() const { return v_.view(); }
  auto out() const { return out_.view(); }
  auto lse() const { return lse_.view(); }
  auto delta() const { return delta_.view(); }
  auto grad_out() const { return grad_out_.view(); }
  auto grad_q() const { return grad_q_.view(); }
  auto grad_k() const { return grad_k_.view(); }
  auto grad_v() const { return grad_v_.view(); }
  const orrery::token_positions& positions() const { return host_.positions(); }
  orrery::segments segments() const { return segments_of(host_.positions()); }

  /// Brings the results back, when all that was enqueued is done.
  shard<T>& results() {
    for (const auto* one : {&out_, &grad_q_, &grad_k_, &grad_v_}) one->fetch(stream_);
    lse_.fetch(stream_);
    wait();
    return host_;
  }
  double error_against(const shard<T>& whole, orrery::pass p) { return results().error_against(whole, p); }

 private:
  using tensor = device_copy<orrery::tensor_view<T>>;
  using rows = device_copy<orrery::row_view<accumulator_of<T>>>;

  void wait() const { orrery::detail::check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

  cudaStream_t stream_;
  shard<T> host_;
  tensor q_{host_.q()}, k_{host_.k()}, v_{host_.v()}, grad_out_{host_.grad_out()};
  tensor out_{host_.out()}, grad_q_{host_.grad_q()}, grad_k_{host_.grad_k()}, grad_v_{host_.grad_v()};
  rows lse_{host_.lse()}, delta_{host_.delta()};
};

}  // namespace bench
