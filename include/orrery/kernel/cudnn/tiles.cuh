// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "orrery/device/context.hpp"
#include "orrery/kernel/cudnn/call.hpp"
#include "orrery/kernel/cudnn/execution_plans.hpp"
#include "orrery/kernel/cudnn/mask_rectangles.hpp"
#include "orrery/kernel/cudnn/workspace.cuh"
#include "orrery/tensor/float16.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What all of `device_cudnn`'s calls share: which of cuDNN's calls a pair of blocks is, and its tensors. Queries and
/// keys are those of a tile or of a whole call, of the forward or of the backward.
template <class T, class Engine, class Device, class Memory>
class device_cudnn_tiles {
 protected:
  using memory = device_cudnn_memory<T, Device, Memory>;

  template <class Call>
  static constexpr bool is_backward = requires(const Call& call) {
    call.grad_out;
  };

  /// One call's share of its tile.
  struct call_views {
    cudnn_part part;
    cudnn_heads heads;
    int plan = -1;
    std::int64_t value_dim = 0;
    tensor_view<const T> q{}, k{}, v{}, grad_out{};
  };

  // Before the first call.

  static void expect_dims(std::int64_t head_dim, std::int64_t value_dim) {
    for (const auto& [name, dim] : {std::pair{"head_dim", head_dim}, std::pair{"value_dim", value_dim}}) {
      if (dim % 8 == 0) continue;
      throw std::invalid_argument{std::string{"orrery: "} + name + " is " + std::to_string(dim) + ", but kernel " +
                                  kernel_name() + " needs a multiple of 8; orrery::device_flash takes any"};
    }
  }

  template <class Query>
  void expect_queries(const Query& query) {
    memory_.expect_own(cudnn_region::own_q, query.q);
    if constexpr (is_backward<Query>) memory_.expect_own(cudnn_region::own_grad_out, query.grad_out);
  }
  template <class Key>
  void expect_keys(const Key& key) {
    memory_.expect_own(cudnn_region::own_k, key.k);
    memory_.expect_own(cudnn_region::own_v, key.v);
  }
  /// cuDNN has no backward of a single pair, as they occur at the corners of a mask.
  template <class Call>
  static constexpr bool is_left_to_reference(const cudnn_part& part) noexcept {
    return is_backward<Call> && part.queries == 1 && part.keys == 1;
  }

  // In a call.

  void run(const device_context& context, int plan, const cudnn_tensors& tensors) {
    calls_.run(plan, context, tensors, memory_.template region<void>(cudnn_region::workspace));
  }

  template <class Query, class Key, class Visit>
  void for_pieces(const cudnn_call& call, const cudnn_part& part, const cudnn_heads& all, const Query& query,
                  const Key& key, const Visit& visit) {
    calls_.for_pieces(call, kernel_name(), [&](const auto& one) {
      const std::int64_t group = all.query_heads / all.key_heads;
      call_views now{part,
                     {all.first_query_head + one.first_key_head * group, one.call->query_heads,
                      all.first_key_head + one.first_key_head, one.call->key_heads},
                     one.plan,
                     call.value_dim};
      now.q = queries_of(now, query.q);
      now.k = keys_of(now, key.k);
      now.v = keys_of(now, key.v);
      if constexpr (is_backward<Query>) now.grad_out = queries_of(now, query.grad_out);
      visit(now);
    });
  }

  template <class Query, class Key>
  static cudnn_call call_of(const Query& query, const Key& key, const cudnn_part& part, const cudnn_heads& heads,
                            float scale) {
    cudnn_call call;
    call.causal = part.causal;
    call.type = std::is_same_v<T, bfloat16> ? cudnn_type::bfloat16 : cudnn_type::float16;
    call.scale = scale;
    call.batch = query.q.batch;
    call.query_heads = heads.query_heads;
    call.key_heads = heads.key_heads;
    call.queries = part.queries;
    call.keys = part.keys;
    call.key_dim = key.k.dim;
    call.value_dim = key.v.dim;
    call.q = cudnn_strides::of(query.q);
    call.k = cudnn_strides::of(key.k);
    call.v = cudnn_strides::of(key.v);
    if constexpr (is_backward<Query>) {
      call.backward = true;
      call.grad_out = cudnn_strides::of(query.grad_out);
    }
    call.pack_results();
    return call;
  }
  template <class View>
  static View queries_of(const call_views& now, const View& view) {
    return view.slice_tokens(now.part.first_query, now.part.queries)
        .slice_heads(now.heads.first_query_head, now.heads.query_heads);
  }
  template <class View>
  static View keys_of(const call_views& now, const View& view) {
    return view.slice_tokens(now.part.first_key, now.part.keys)
        .slice_heads(now.heads.first_key_head, now.heads.key_heads);
  }

  static std::string kernel_name() { return "device_cudnn<" + element_name<T>() + ">"; }

  device_cudnn_calls<Engine> calls_;
  memory memory_;
};

}  // namespace orrery::detail
