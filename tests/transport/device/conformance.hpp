// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <cuda_runtime_api.h>

#include "orrery/attention.hpp"
#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"

#include "support/conformance.hpp"

/// The conformance suite for operators whose tensors lie in device memory: on a GPU and on the runtime double alike.
namespace cuda_test {

/// A tensor or rows of the host, and the same in device memory: with the same strides, and what lies between.
template <class View>
class staged {
 public:
  using element = std::remove_const_t<typename View::element>;

  staged(const View& of_host, cudaStream_t stream)
      : host_{of_host}, bytes_{size_of(of_host)}, memory_{bytes_}, device_{of_host}, stream_{stream} {
    if (bytes_ > 0) device_.data = reinterpret_cast<element*>(memory_.data());
    bring();
  }

  staged(const staged&) = delete;
  staged& operator=(const staged&) = delete;
  ~staged() { static_cast<void>(cudaStreamSynchronize(stream_)); }

  [[nodiscard]] const View& view() const noexcept { return device_; }
  /// Enqueues the way to the device.
  void bring() const {
    if (bytes_ == 0) return;
    orrery::detail::check_cuda(
        cudaMemcpyAsync(memory_.data(), host_.data, static_cast<std::size_t>(bytes_), cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync");
  }
  /// Enqueues the way back.
  void fetch() const {
    if (bytes_ == 0) return;
    orrery::detail::check_cuda(
        cudaMemcpyAsync(host_.data, memory_.data(), static_cast<std::size_t>(bytes_), cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpyAsync");
  }

 private:
  template <class T>
  static std::int64_t size_of(const orrery::tensor_view<T>& t) {
    if (t.size() == 0) return 0;
    return (t.at(t.batch - 1, t.sequence - 1, t.heads - 1) + t.dim - t.data) * std::int64_t{sizeof(T)};
  }
  template <class T>
  static std::int64_t size_of(const orrery::row_view<T>& r) {
    if (r.size() == 0) return 0;
    return (r.at(r.batch - 1, r.heads - 1, r.sequence - 1) + 1 - r.data) * std::int64_t{sizeof(T)};
  }

  View host_;
  std::int64_t bytes_;
  orrery::detail::device_memory memory_;
  View device_;
  cudaStream_t stream_;
};

/// One rank's tensors in device memory.
template <class Kernel>
struct device_tensors {
  using storage = typename Kernel::storage;
  using log_sum_exp = orrery::detail::log_sum_exp_of<storage>;
  using tensor = staged<orrery::tensor_view<storage>>;

  tensor q, k, v, grad_out, out, grad_q, grad_k, grad_v;
  staged<orrery::row_view<log_sum_exp>> lse;

  device_tensors(const conformance::rank_tensors<Kernel>& host, cudaStream_t stream)
      : q{host.q.view(), stream},
        k{host.k.view(), stream},
        v{host.v.view(), stream},
        grad_out{host.grad_out.view(), stream},
        out{host.out.view(), stream},
        grad_q{host.grad_q.view(), stream},
        grad_k{host.grad_k.view(), stream},
        grad_v{host.grad_v.view(), stream},
        lse{host.lse.view(), stream} {}

  template <class Attention>
  void forward(Attention& attend) {
    attend.forward(q.view(), k.view(), v.view(), out.view(), lse.view());
  }
  /// The operands one after the other.
  template <class Attention>
  void forward_by_tensor(Attention& attend) {
    auto call = attend.begin_forward(out.view(), lse.view());
    call.queries(q.view());
    call.keys(k.view());
    call.values(v.view());
    call.finish();
  }
  template <class Attention>
  void backward(Attention& attend) {
    attend.backward(q.view(), k.view(), v.view(), out.view(), lse.view(), grad_out.view(), grad_q.view(), grad_k.view(),
                    grad_v.view());
  }
  /// Enqueues the results' way to the device: for poison.
  void bring_results() const {
    for (const tensor* one : {&out, &grad_q, &grad_k, &grad_v}) one->bring();
    lse.bring();
  }
  /// Enqueues their way back to the host.
  void fetch() const {
    for (const tensor* one : {&out, &grad_q, &grad_k, &grad_v}) one->fetch();
    lse.fetch();
  }
};

/// A rank that trains: an operator, and its tensors on the host and on the device.
template <class Topology, class Kernel, class World>
struct trainer {
  orrery::attention<Topology, Kernel> attend;
  conformance::rank_tensors<Kernel> host;
  device_tensors<Kernel> tensors;

  template <class Mask = orrery::causal, class Layout = orrery::contiguous>
  trainer(World& on, const orrery::attention_shape& shape, const Mask& mask = {}, const Layout& layout = {})
      : attend{on, shape, mask, layout},
        host{oracle::random_problem<typename Kernel::storage>(conformance::oracle_shape(shape), 1),
             attend.query_positions(),
             attend.key_positions(),
             {}},
        tensors{host, on.stream()} {}

  /// Enqueues a forward and a backward.
  void step() {
    tensors.forward(attend);
    tensors.backward(attend);
  }
  /// The results of what was enqueued; they are poisoned then.
  [[nodiscard]] std::string results(World& on) {
    tensors.fetch();
    on.synchronize();
    std::string bits = host.bits();
    host.poison();
    tensors.bring_results();
    return bits;
  }
};

/// An operator over a world of streams.
template <class Topology, class Kernel, class World>
struct device_attention final : conformance::any_attention<Kernel> {
  World* world;
  orrery::attention<Topology, Kernel> attend;

  template <class Mask, class Layout>
  device_attention(World& on, const orrery::attention_shape& shape, const Mask& mask, const Layout& layout,
                   const Topology& topology)
      : world{&on}, attend{on, shape, mask, layout, topology} {}
  void call(conformance::rank_tensors<Kernel>& host) override {
    run(host, [&](device_tensors<Kernel>& tensors) { tensors.forward(attend); });
  }
  void call_by_tensor(conformance::rank_tensors<Kernel>& host) override {
    run(host, [&](device_tensors<Kernel>& tensors) { tensors.forward_by_tensor(attend); });
  }
  [[nodiscard]] const orrery::token_positions& query_positions() const override { return attend.query_positions(); }
  [[nodiscard]] const orrery::token_positions& key_positions() const override { return attend.key_positions(); }

 private:
  template <class Forward>
  void run(const conformance::rank_tensors<Kernel>& host, const Forward& forward) {
    device_tensors<Kernel> tensors{host, world->stream()};
    forward(tensors);
    tensors.backward(attend);
    tensors.fetch();
    world->synchronize();
  }
};

/// As `conformance::failures`; nothing is read before the end.
template <class Topology, class Kernel, class World, class Run, class Mask>
[[nodiscard]] std::string failures(const Run& run, int world, const orrery::attention_shape& shape, const Mask& mask,
                                   const conformance::any_layout& layout, std::uint64_t seed = 1,
                                   const Topology& topology = {}) {
  return conformance::failures_of_operator<device_attention<Topology, Kernel, World>, Kernel, World>(
      run, world, shape, mask, layout, seed, topology);
}

}  // namespace cuda_test
