// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "orrery/kernel/device_backend.cuh"
#include "orrery/kernel/device_context.hpp"
#include "orrery/kernel/device_cudnn_call.hpp"
#include "orrery/kernel/device_cudnn_parts.hpp"
#include "orrery/kernel/device_cudnn_rows.cuh"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/kernel/float16.hpp"
#include "orrery/kernel/mask.hpp"
#include "orrery/kernel/tile.hpp"
#include "orrery/kernel/view.hpp"

namespace orrery {

/// What `device_cudnn` plans for an operator (see `planned_kernel`): the parts of each pair of blocks, an execution
/// plan for each distinct call, and memory for one call at a time and for the rank's own tensors.
template <class T, class Engine, class Device, class Memory>
class device_cudnn_plan {
  static_assert(cudnn_engine<Engine>,
                "orrery::device_cudnn plans with cuDNN itself, which is not known here: include "
                "orrery/kernel/device_cudnn_graphs.hpp");

 public:
  using forward_query = forward_queries<T, float>;
  using forward_key = forward_keys<T>;
  using backward_query = backward_queries<T, float>;
  using backward_key = backward_keys<T, float>;

  /// Calls are cut so that their workspace is at most this, if they can be.
  static constexpr std::int64_t workspace_limit = std::int64_t{1} << 30;

  /// Throw `std::invalid_argument` for a mask, a head dimension or a call that cuDNN does not have.
  template <mask Mask>
  void expect_forward(std::span<const forward_query> queries, std::span<const forward_key> keys, const head_map& heads,
                      float scale, const Mask& mask) {
    expect_tile(queries, keys, heads, scale, mask);
  }
  template <mask Mask>
  void expect_backward(std::span<const backward_query> queries, std::span<const backward_key> keys,
                       const head_map& heads, float scale, const Mask& mask) {
    for (const backward_query& query : queries) expect_own(of_own_grad_out, query.grad_out, query.own);
    expect_tile(queries, keys, heads, scale, mask);
    keys_fresh_.resize((std::max)(keys_fresh_.size(), keys.size()));
  }
  void take_memory() { memory_ = Memory{bytes()}; }
  [[nodiscard]] std::int64_t bytes() const noexcept {
    std::int64_t sum = 0;
    for (const std::int64_t size : sizes_) sum += aligned(size);
    return sum;
  }
  void begin() noexcept {
    for (own_tensor& one : own_) std::fill(one.here.begin(), one.here.end(), char{0});
  }

  /// Every query of `queries` meets every key of `keys` that the mask lets it see; (out, lse) accumulate.
  template <mask Mask>
  void forward(const device_context& context, std::span<const forward_query> queries, std::span<const forward_key> keys,
               const head_map& heads, float scale, const Mask&) {
    for (const forward_query& query : queries) {
      bool fresh = query.fresh;
      for (const forward_key& key : keys) {
        for_calls(
            context, query, key, heads, scale,
            [&](const call_views& now) {
              const tensor_view<T> out = packed<T>(of_out, now.q, now.call.value_dim);
              const row_view<float> lse = packed_rows(now.q);
              engine_.run(now.plan, context, {now.q.data, now.k.data, now.v.data, out.data, lse.data},
                          region<void>(of_workspace));
              const auto into = queries_of(now, query.out);
              const auto into_lse = queries_of(now, query.lse);
              if (fresh && into.size() == query.out.size()) {
                backend::copy(context, out, into);
                backend::copy(context, lse, into_lse);
              } else {
                if (fresh) clear(context, query);
                backend::merge(context, into, into_lse, out, lse);
              }
              fresh = false;
            },
            [](const auto&...) {});
      }
      if (fresh) clear(context, query);
    }
  }

  /// The gradients of sum(out * grad_out) with respect to q, k and v accumulate; `lse` and `delta` are the forward's.
  template <mask Mask>
  void backward(const device_context& context, std::span<const backward_query> queries,
                std::span<const backward_key> keys, const head_map& heads, float scale, const Mask&) {
    for (std::size_t i = 0; i < keys.size(); ++i) keys_fresh_[i] = keys[i].fresh ? 1 : 0;
    for (const backward_query& query : queries) {
      bool fresh = query.fresh;
      for (std::size_t i = 0; i < keys.size(); ++i) {
        const backward_key& key = keys[i];
        for_calls(
            context, query, key, heads, scale,
            [&](const call_views& now) {
              const tensor_view<T> out = packed<T>(of_out, now.q, now.call.value_dim);
              const row_view<float> lse = packed_rows(now.q);
              const tensor_view<T> grad_q = packed<T>(of_grad_q, now.q, now.call.key_dim);
              const tensor_view<T> grad_k = packed<T>(of_grad_k, now.k, now.call.key_dim);
              const tensor_view<T> grad_v = packed<T>(of_grad_v, now.k, now.call.value_dim);
              launch_cudnn_rows<Device>(context, device_cudnn_rows<T>{now.grad_out, queries_of(now, query.lse),
                                                                      queries_of(now, query.delta), out, lse});
              engine_.run(now.plan, context,
                          {now.q.data, now.k.data, now.v.data, out.data, lse.data, now.grad_out.data, grad_q.data,
                           grad_k.data, grad_v.data},
                          region<void>(of_workspace));
              accumulate(context, query.grad_q, queries_of(now, query.grad_q), grad_q, fresh);
              accumulate(context, key.grad_k, keys_of(now, key.grad_k), grad_k, keys_fresh_[i] != 0);
              accumulate(context, key.grad_v, keys_of(now, key.grad_v), grad_v, keys_fresh_[i] != 0);
              fresh = false;
              keys_fresh_[i] = 0;
            },
            [&](const backward_query& of_query, const backward_key& of_key, const cudnn_part& part) {
              if (fresh) backend::clear(context, query.grad_q);
              if (keys_fresh_[i] != 0) clear(context, key);
              single_pair(context, of_query, of_key, part, heads, scale);
              fresh = false;
              keys_fresh_[i] = 0;
            });
      }
      if (fresh) backend::clear(context, query.grad_q);
    }
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (keys_fresh_[i] != 0) clear(context, keys[i]);
    }
  }

 private:
  using backend = device_backend<Device>;
  using positions_key = std::array<std::int64_t, 16>;

  enum region_name : std::size_t {
    of_out,
    of_lse,
    of_grad_q,
    of_grad_k,
    of_grad_v,
    of_workspace,
    of_own_q,
    of_own_k,
    of_own_v,
    of_own_grad_out,
    regions
  };

  /// A distinct call: its execution plan; or, if that would need too much workspace, how many key heads at a time.
  struct planned_call {
    int plan = -1;
    std::int64_t key_heads = 0;
  };
  /// The rank's own q, k, v or grad_out: with which strides calls are planned, and which of its slices, by their first
  /// heads, are in the plan's copy by now.
  struct own_tensor {
    cudnn_strides strides;
    std::vector<char> here;
  };
  /// One call's share of its tile.
  struct call_views {
    cudnn_call call;
    cudnn_part part;
    cudnn_heads heads;
    int plan = -1;
    tensor_view<const T> q{}, k{}, v{}, grad_out{};
  };

  static constexpr std::int64_t aligned(std::int64_t bytes) noexcept { return (bytes + 255) / 256 * 256; }

  static positions_key key_of(const segments& queries, const segments& keys) noexcept {
    positions_key key{};
    std::size_t at = 0;
    for (const segments* side : {&queries, &keys}) {
      for (int i = 0; i < 2; ++i) {
        const segment piece = i < side->size() ? (*side)[i] : segment{0, 0, 0, 0};
        for (const std::int64_t number : {piece.begin, piece.count, piece.run, piece.stride}) key[at++] = number;
      }
    }
    return key;
  }

  // Before the first call.

  template <class Query, class Key, mask Mask>
  void expect_tile(std::span<const Query> queries, std::span<const Key> keys, const head_map& heads, float scale,
                   const Mask& mask) {
    for (const Query& query : queries) {
      expect_own(of_own_q, query.q, query.own);
      for (const Key& key : keys) {
        expect_own(of_own_k, key.k, key.own);
        expect_own(of_own_v, key.v, key.own);
        expect_dim("head_dim", key.k.dim);
        expect_dim("value_dim", key.v.dim);
        auto [place, is_new] = parts_.try_emplace(key_of(query.positions, key.positions));
        if (is_new) place->second = cudnn_parts_of(query.positions, key.positions, mask, kernel_name());
        for (const cudnn_part& part : place->second) {
          if (is_left_to_reference<Query>(part)) continue;
          for_cudnn_heads(heads, query.q.heads,
                          [&](const cudnn_heads& some) { expect_call(call_of(query, key, part, some, scale)); });
        }
      }
    }
  }

  static void expect_dim(const char* name, std::int64_t dim) {
    if (dim % 8 == 0) return;
    throw std::invalid_argument{std::string{"orrery: "} + name + " is " + std::to_string(dim) + ", but kernel " +
                                kernel_name() + " needs a multiple of 8; orrery::device_flash takes any"};
  }

  void expect_own(region_name which, const tensor_view<const T>& view, bool own) {
    if (!own) return;
    const std::int64_t heads = view.sequence_stride / view.dim;
    own_tensor& tensor = own_[which - of_own_q];
    tensor.strides = cudnn_strides::of(view);
    tensor.here.resize(static_cast<std::size_t>(heads));
    needs(which, view.batch * view.sequence * heads * view.dim, sizeof(T));
  }

  /// Returns how many key heads are computed at a time.
  std::int64_t expect_call(const cudnn_call& call) {
    if (const auto known = calls_.find(call); known != calls_.end()) return known->second.key_heads;
    planned_call made{engine_.plan(call), call.key_heads};
    const std::int64_t workspace = engine_.workspace_bytes(made.plan);
    if (workspace > workspace_limit && call.key_heads > 1) {
      made.key_heads = expect_call(of_key_heads(call, (call.key_heads + 1) / 2));
      if (call.key_heads % made.key_heads != 0) expect_call(of_key_heads(call, call.key_heads % made.key_heads));
    } else {
      const std::int64_t rows = call.batch * call.query_heads * call.queries;
      const std::int64_t key_rows = call.batch * call.key_heads * call.keys;
      needs(of_out, rows * call.value_dim, sizeof(T));
      needs(of_lse, rows, sizeof(float));
      if (call.backward) {
        needs(of_grad_q, rows * call.key_dim, sizeof(T));
        needs(of_grad_k, key_rows * call.key_dim, sizeof(T));
        needs(of_grad_v, key_rows * call.value_dim, sizeof(T));
      }
      needs(of_workspace, workspace, 1);
    }
    calls_.emplace(call, made);
    return made.key_heads;
  }

  void needs(region_name which, std::int64_t elements, std::size_t size) {
    sizes_[which] = (std::max)(sizes_[which], elements * static_cast<std::int64_t>(size));
  }

  /// cuDNN has no backward of a single pair, as they occur at the corners of a mask.
  template <class Query>
  static constexpr bool is_left_to_reference(const cudnn_part& part) noexcept {
    return std::is_same_v<Query, backward_query> && part.queries == 1 && part.keys == 1;
  }

  // In a call.

  /// Calls visit(views) for each of cuDNN's calls of a pair of blocks, and single(query, key, part) for the pairs that
  /// are left to `device_reference`.
  template <class Query, class Key, class Visit, class Single>
  void for_calls(const device_context& context, const Query& given_query, const Key& given_key, const head_map& heads,
                 float scale, const Visit& visit, const Single& single) {
    const std::vector<cudnn_part>& parts = found(parts_, key_of(given_query.positions, given_key.positions));
    if (parts.empty()) return;
    Query query = given_query;
    Key key = given_key;
    if (query.own) query.q = as_planned(context, of_own_q, query.q, heads.first_query_head);
    if (key.own) {
      key.k = as_planned(context, of_own_k, key.k, heads.first_key_head);
      key.v = as_planned(context, of_own_v, key.v, heads.first_key_head);
    }
    if constexpr (requires { query.grad_out; }) {
      if (query.own) query.grad_out = as_planned(context, of_own_grad_out, query.grad_out, heads.first_query_head);
    }
    for (const cudnn_part& part : parts) {
      if (is_left_to_reference<Query>(part)) {
        single(query, key, part);
        continue;
      }
      for_cudnn_heads(heads, query.q.heads, [&](const cudnn_heads& all) {
        const cudnn_call call = call_of(query, key, part, all, scale);
        const std::int64_t at_a_time = found(calls_, call).key_heads;
        for (std::int64_t first = 0; first < all.key_heads; first += at_a_time) {
          const std::int64_t count = (std::min)(at_a_time, all.key_heads - first);
          const std::int64_t group = all.query_heads / all.key_heads;
          call_views now{of_key_heads(call, count),
                         part,
                         {all.first_query_head + first * group, count * group, all.first_key_head + first, count}};
          now.plan = found(calls_, now.call).plan;
          now.q = queries_of(now, query.q);
          now.k = keys_of(now, key.k);
          now.v = keys_of(now, key.v);
          if constexpr (requires { query.grad_out; }) now.grad_out = queries_of(now, query.grad_out);
          visit(now);
        }
      });
    }
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
    if constexpr (requires { query.grad_out; }) {
      call.backward = true;
      call.grad_out = cudnn_strides::of(query.grad_out);
    }
    return call;
  }
  static cudnn_call of_key_heads(cudnn_call call, std::int64_t key_heads) {
    call.query_heads = call.query_heads / call.key_heads * key_heads;
    call.key_heads = key_heads;
    return call;
  }

  /// The tensor as it was expected: as it is, or the plan's copy.
  tensor_view<const T> as_planned(const device_context& context, region_name which, tensor_view<const T> is,
                                  std::int64_t first_head) {
    own_tensor& tensor = own_[which - of_own_q];
    const cudnn_strides& as = tensor.strides;
    const bool fits = reinterpret_cast<std::uintptr_t>(is.data) % 16 == 0 &&
                      (is.batch == 1 || is.batch_stride == as.batch) && (is.heads == 1 || is.head_stride == as.head) &&
                      (is.sequence == 1 || is.sequence_stride == as.sequence);
    const T* data = is.data;
    if (!fits) {
      T* const copy = region<T>(which) + first_head * as.head;
      char& here = tensor.here[static_cast<std::size_t>(first_head)];
      if (here == 0) {
        backend::copy(context, is,
                      tensor_view<T>{copy, is.batch, is.sequence, is.heads, is.dim, as.batch, as.sequence, as.head});
      }
      here = 1;
      data = copy;
    }
    return {data, is.batch, is.sequence, is.heads, is.dim, as.batch, as.sequence, as.head};
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

  /// Scratch for a result with a row for each of these.
  template <class U>
  tensor_view<U> packed(region_name which, const tensor_view<const T>& rows, std::int64_t dim) const {
    return batch_head_sequence_dim(region<U>(which), rows.batch, rows.heads, rows.sequence, dim);
  }
  row_view<float> packed_rows(const tensor_view<const T>& rows) const {
    return batch_head_sequence(region<float>(of_lse), rows.batch, rows.heads, rows.sequence);
  }
  template <class U>
  U* region(region_name which) const {
    std::byte* at = memory_.data();
    for (std::size_t before = 0; before < which; ++before) at += aligned(sizes_[before]);
    return static_cast<U*>(static_cast<void*>(at));
  }

  static void clear(const device_context& context, const forward_query& query) {
    backend::clear(context, query.out);
    backend::clear(context, query.lse, -std::numeric_limits<float>::infinity());
  }
  static void clear(const device_context& context, const backward_key& key) {
    backend::clear(context, key.grad_k);
    backend::clear(context, key.grad_v);
  }

  static void single_pair(const device_context& context, const backward_query& query, const backward_key& key,
                          const cudnn_part& part, const head_map& heads, float scale) {
    const auto of_query = [&](const auto& view) { return view.slice_tokens(part.first_query, 1); };
    const auto of_key = [&](const auto& view) { return view.slice_tokens(part.first_key, 1); };
    segments position;
    position.add({0, 1, 1, 1});
    const backward_query queries[] = {{of_query(query.q), of_query(query.grad_out), of_query(query.lse),
                                       of_query(query.delta), of_query(query.grad_q), position, false, false}};
    const backward_key keys[] = {
        {of_key(key.k), of_key(key.v), of_key(key.grad_k), of_key(key.grad_v), position, false, false}};
    device_reference<T, Device>::backward(context, std::span<const backward_query>{queries},
                                          std::span<const backward_key>{keys}, heads, scale, full{});
  }

  /// into, a part of `sum`, += from.
  static void accumulate(const device_context& context, const tensor_view<float>& sum, const tensor_view<float>& into,
                         const tensor_view<T>& from, bool fresh) {
    if (fresh && into.size() == sum.size()) {
      backend::copy(context, from, into);
    } else {
      if (fresh) backend::clear(context, sum);
      backend::add(context, into, from);
    }
  }

  template <class Map>
  static const auto& found(const Map& map, const typename Map::key_type& key) {
    const auto place = map.find(key);
    if (place == map.end()) {
      throw std::logic_error{"orrery: kernel " + kernel_name() +
                             " is called for a tile that it was not told of when its operator was made; its calls are "
                             "those of an operator, made by orrery::attention"};
    }
    return place->second;
  }
  static std::string kernel_name() { return "device_cudnn<" + element_name<T>() + ">"; }

  Engine engine_;
  std::map<positions_key, std::vector<cudnn_part>> parts_;
  std::map<cudnn_call, planned_call> calls_;
  std::array<own_tensor, 4> own_;
  std::array<std::int64_t, regions> sizes_{};
  std::vector<char> keys_fresh_;  // of the call under way
  Memory memory_;
};

}  // namespace orrery
