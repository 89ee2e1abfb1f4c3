// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <compare>
#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>

#include "orrery/device/context.hpp"
#include "orrery/tensor/float16.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// Where the elements of one of cuDNN's tensors lie, in elements; those of one head are contiguous.
struct cudnn_strides {
  std::int64_t batch = 0;
  std::int64_t head = 0;
  std::int64_t sequence = 0;

  constexpr auto operator<=>(const cudnn_strides&) const = default;

  /// Contiguous, [batch, head, sequence, dim].
  [[nodiscard]] static constexpr cudnn_strides packed(std::int64_t heads, std::int64_t sequence,
                                                      std::int64_t dim) noexcept {
    return {heads * sequence * dim, sequence * dim, dim};
  }
  template <class T>
  [[nodiscard]] static constexpr cudnn_strides of(const tensor_view<T>& t) noexcept {
    return {t.batch_stride, t.head_stride, t.sequence_stride};
  }
};

/// The storage types that cuDNN's attention is used for.
enum class cudnn_type : std::uint8_t { bfloat16, float16 };

/// All that cuDNN has to know of one call of its scaled dot product attention before there are tensors: what an
/// execution plan is made for.
///
/// Query head h reads key head h / (query_heads / key_heads). Every query sees every key; or, if `causal`, query i sees
/// the keys at most at i + (keys - queries), queries <= keys: the last query sees all keys. out and the gradients are
/// of the storage type; the log-sum-exp (natural), which the forward writes and the backward reads, is float, and
/// packed.
struct cudnn_call {
  bool backward = false;
  bool causal = false;
  cudnn_type type = cudnn_type::bfloat16;
  float scale = 1;
  std::int64_t batch = 0;
  std::int64_t query_heads = 0;
  std::int64_t key_heads = 0;
  std::int64_t queries = 0;  ///< tokens
  std::int64_t keys = 0;
  std::int64_t key_dim = 0;
  std::int64_t value_dim = 0;
  cudnn_strides q;
  cudnn_strides k;
  cudnn_strides v;
  cudnn_strides out;
  // In the backward:
  cudnn_strides grad_out;
  cudnn_strides grad_q;
  cudnn_strides grad_k;
  cudnn_strides grad_v;

  bool in_place = false;  ///< out and the gradients lie as somebody else's; otherwise they are packed, as by:
  void pack_results() noexcept {
    out = cudnn_strides::packed(query_heads, queries, value_dim);
    if (!backward) return;
    grad_q = cudnn_strides::packed(query_heads, queries, key_dim);
    grad_k = cudnn_strides::packed(key_heads, keys, key_dim);
    grad_v = cudnn_strides::packed(key_heads, keys, value_dim);
  }

  auto operator<=>(const cudnn_call&) const = default;

  /// For messages.
  [[nodiscard]] std::string text() const {
    const auto number = [](std::int64_t n) { return std::to_string(n); };
    return std::string{backward ? "backward" : "forward"} + " of " + number(queries) + " queries and " + number(keys) +
           " keys" + (causal ? ", causal" : "") + ", batch " + number(batch) + ", " + number(query_heads) +
           " query heads and " + number(key_heads) + " key heads of dimensions " + number(key_dim) + " and " +
           number(value_dim);
  }
};

/// The tensors of a call, in device memory, at multiples of 16 bytes. The forward reads q, k and v and writes out and
/// lse; the backward reads q, k, v, out, lse and grad_out and writes grad_q, grad_k and grad_v. The others are null.
struct cudnn_tensors {
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  void* out = nullptr;
  float* lse = nullptr;
  const void* grad_out = nullptr;
  void* grad_q = nullptr;
  void* grad_k = nullptr;
  void* grad_v = nullptr;
};

/// What `device_cudnn` needs of cuDNN: `cudnn_graphs` is the real one.
///
/// - `plan(call)` makes an execution plan on the current device, whose backward is deterministic, and returns its
///   number. Throws `std::invalid_argument`, a message with the call, if cuDNN does not have it there.
/// - `workspace_bytes(plan)` is what the plan needs when it runs.
/// - `run(plan, context, tensors, workspace)` enqueues it on the context's stream: no waiting, no device memory taken.
template <class Engine>
concept cudnn_engine = std::default_initializable<Engine> &&
    requires(Engine& engine, const cudnn_call& call, int plan, const device_context& context,
             const cudnn_tensors& tensors, void* workspace) {
  { engine.plan(call) } -> std::same_as<int>;
  { engine.workspace_bytes(plan) } -> std::same_as<std::int64_t>;
  engine.run(plan, context, tensors, workspace);
};

}  // namespace orrery::detail

namespace orrery {

/// cuDNN itself, see `kernel/device_cudnn_graphs.hpp`.
class cudnn_graphs;

}  // namespace orrery
