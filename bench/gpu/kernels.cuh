// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "orrery/attention/tile.hpp"
#include "orrery/kernel/device_flash.cuh"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/full.hpp"

#include "ceilings.cuh"
#include "common/device_shard.hpp"
#include "common/problem.hpp"
#include "report.hpp"
#include "sizes.hpp"
#include "timing.hpp"

namespace bench {

/// The forward of `device_flash` by warpgroups at head dimension 128, without the overlap of a product and the
/// exponentials: what the overlap gains is the difference to `device_flash` in the same run.
template <class Device>
struct flash_without_overlap : orrery::detail::device_backend<Device> {
  using storage = orrery::bfloat16;
  static constexpr bool forward_only = true;

  struct policies : orrery::device_flash_policies {
    static constexpr orrery::device_warpgroup_policy warpgroup_forward(int key_dim, int value_dim) {
      auto policy = orrery::device_flash_policies::warpgroup_forward(key_dim, value_dim);
      policy.overlap_softmax = false;
      return policy;
    }
  };

  static std::string name() { return "device_flash<bfloat16, wgmma>, exponentials after the product"; }

  template <class Mask>
  static void forward(const orrery::device_context& context,
                      std::span<const orrery::forward_queries<storage, float>> queries,
                      std::span<const orrery::forward_keys<storage>> keys, const orrery::head_map& heads, float scale,
                      const Mask& mask) {
    using body_type = orrery::detail::device_flash_wgmma_forward<storage, Mask, 128, 128, policies>;
    orrery::detail::for_device_blocks(queries, keys, [&](const auto& some_queries, const auto& some_keys) {
      const auto body = body_type::template on<Device>(some_queries, some_keys, heads, scale, mask);
      Device::template launch_warpgroups<body_type::threads_of_block>(context, body.blocks(), body_type::shared_bytes,
                                                                      body);
    });
  }
};

/// Has a kernel no backward, and no head dimension but 128?
template <class Kernel>
inline constexpr bool is_forward_only = requires {
  Kernel::forward_only;
};

/// The passes that a kernel has.
template <class Kernel>
std::vector<orrery::pass> passes_of() {
  if (is_forward_only<Kernel>) return {orrery::pass::forward};
  return {orrery::pass::forward, orrery::pass::circulate_keys};
}

/// Calls of a kernel without an operator, on a whole sequence. What a kernel sums is float; results are rounded to
/// storage by `finish`.
template <class Kernel, class Mask>
class kernel_calls {
 public:
  using storage = typename Kernel::storage;

  kernel_calls(cudaStream_t stream, const orrery::attention_shape& shape, const Mask& mask)
      : context_{stream},
        mask_{mask},
        all_{stream, shape, orrery::contiguous::shard(0, 1, shape.length)},
        sums_{3 * all_.q().size() * std::int64_t{sizeof(float)} + all_.k().size() * std::int64_t{sizeof(float)}} {
    next_ = reinterpret_cast<float*>(sums_.data());
    out_ = like(all_.out());
    grad_q_ = like(all_.grad_q());
    grad_k_ = like(all_.grad_k());
    grad_v_ = like(all_.grad_v());
  }

  void forward() const {
    const orrery::forward_queries<storage, float> queries{all_.q(), out_, all_.lse(), all_.segments(), true};
    const orrery::forward_keys<storage> keys{all_.k(), all_.v(), all_.segments()};
    Kernel::template forward<Mask>(context_, std::span(&queries, 1), std::span(&keys, 1), {}, scale(), mask_);
  }
  /// With the row dots, and after a forward that was finished.
  void backward() const {
    Kernel::row_dot(context_, all_.out(), all_.grad_out(), all_.delta());
    const orrery::backward_queries<storage, float> queries{all_.q(), all_.grad_out(), all_.lse(), all_.delta(),
                                                           grad_q_,  all_.segments(), true};
    const orrery::backward_keys<storage, float> keys{all_.k(), all_.v(), grad_k_, grad_v_, all_.segments(), true};
    Kernel::template backward<Mask>(context_, std::span(&queries, 1), std::span(&keys, 1), {}, scale(), mask_);
  }
  void call(orrery::pass p) const {
    if constexpr (is_forward_only<Kernel>) {
      forward();
    } else if (p == orrery::pass::forward) {
      forward();
    } else {
      backward();
    }
  }
  void finish(orrery::pass p) const {
    if (p == orrery::pass::forward) {
      Kernel::copy(context_, out_, all_.out());
    } else {
      Kernel::copy(context_, grad_q_, all_.grad_q());
      Kernel::copy(context_, grad_k_, all_.grad_k());
      Kernel::copy(context_, grad_v_, all_.grad_v());
    }
  }
  /// The whole sequence in the host's memory, with the results.
  shard<storage>& results() { return all_.results(); }

 private:
  template <class View>
  orrery::tensor_view<float> like(const View& v) {
    const auto made = orrery::batch_sequence_head_dim(next_, v.batch, v.sequence, v.heads, v.dim);
    next_ += v.size();
    return made;
  }
  [[nodiscard]] float scale() const { return static_cast<float>(1 / std::sqrt(static_cast<double>(all_.q().dim))); }

  orrery::device_context context_;
  Mask mask_;
  device_shard<storage> all_;
  orrery::detail::device_memory sums_;
  float* next_ = nullptr;
  orrery::tensor_view<float> out_, grad_q_, grad_k_, grad_v_;
};

inline const char* name_of_mask(const orrery::full&) { return "full"; }
inline const char* name_of_mask(const orrery::causal&) { return "causal"; }

/// The largest error of a kernel's forward and backward beside `device_reference`.
template <class Kernel, class Device, class Mask>
double kernel_error(const gpu_sizes& sizes, cudaStream_t stream, std::int64_t dim, const Mask& mask) {
  using storage = typename Kernel::storage;
  const orrery::attention_shape shape{.length = sizes.checked_tokens, .query_heads = 2, .head_dim = dim};
  kernel_calls<Kernel, Mask> tested{stream, shape, mask};
  kernel_calls<orrery::device_reference<storage, Device>, Mask> expected{stream, shape, mask};
  double worst = 0;
  for (const orrery::pass p : passes_of<Kernel>()) {
    tested.call(p);
    tested.finish(p);
    expected.call(p);
    expected.finish(p);
    worst = std::fmax(worst, tested.results().error_against(expected.results(), p));
  }
  return worst;
}

/// A kernel alone: its speed in flop per second and in per cent of a loop of mma.sync, and its error.
template <class Kernel, class Device, class Mask>
void measure_kernel(report& to, const gpu_sizes& sizes, const ceilings& most, cudaStream_t stream, const Mask& mask) {
  for (const std::int64_t dim : sizes.kernel_dims) {
    if (is_forward_only<Kernel> && dim != 128) continue;
    const double error = kernel_error<Kernel, Device>(sizes, stream, dim, mask);
    for (const std::int64_t tokens : sizes.kernel_tokens) {
      const std::int64_t heads = sizes.kernel_elements / tokens / dim;
      const orrery::attention_shape shape{.length = tokens, .query_heads = heads, .head_dim = dim};
      const kernel_calls<Kernel, Mask> calls{stream, shape, mask};
      for (const orrery::pass p : passes_of<Kernel>()) {
        const double seconds = seconds_on_device(stream, sizes, [&] { calls.call(p); });
        calls.finish(p);
        const double speed = flop_of(shape, std::string{name_of_mask(mask)} == "causal", p) / seconds;
        to.add("kernel", {{"kernel", Kernel::name()},
                          {"pass", p == orrery::pass::forward ? "forward" : "backward"},
                          {"mask", name_of_mask(mask)},
                          {"dim", dim},
                          {"tokens", tokens},
                          {"heads", heads},
                          {"ms", seconds * 1e3},
                          {"tflop_per_s", speed * 1e-12},
                          {"percent_of_mma", 100 * speed / most.multiply},
                          {"max_error", error}});
      }
    }
  }
}

}  // namespace bench
