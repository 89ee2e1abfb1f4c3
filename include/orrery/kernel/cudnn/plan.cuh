// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "orrery/attention/tile.hpp"
#include "orrery/device/context.hpp"
#include "orrery/kernel/cuda/backend.cuh"
#include "orrery/kernel/cudnn/call.hpp"
#include "orrery/kernel/cudnn/delta_rows.cuh"
#include "orrery/kernel/cudnn/execution_plans.hpp"
#include "orrery/kernel/cudnn/mask_rectangles.hpp"
#include "orrery/kernel/cudnn/tiles.cuh"
#include "orrery/kernel/cudnn/workspace.cuh"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/float16.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What `device_cudnn` plans for an operator (see `planned_kernel`), and its calls.
template <class T, class Engine, class Device, class Memory>
class device_cudnn_plan : device_cudnn_tiles<T, Engine, Device, Memory> {
  using tiles = device_cudnn_tiles<T, Engine, Device, Memory>;
  using tiles::call_of;
  using tiles::calls_;
  using tiles::expect_dims;
  using tiles::expect_keys;
  using tiles::expect_queries;
  using tiles::for_pieces;
  using tiles::kernel_name;
  using tiles::keys_of;
  using tiles::memory_;
  using tiles::queries_of;
  using tiles::run;
  using typename tiles::call_views;
  using typename tiles::memory;
  template <class Call>
  static constexpr bool is_backward = tiles::template is_backward<Call>;

 public:
  using forward_query = forward_queries<T, float>;
  using forward_key = forward_keys<T>;
  using backward_query = backward_queries<T, float>;
  using backward_key = backward_keys<T, float>;

  /// Throw `std::invalid_argument` for a mask, a head dimension or a call that cuDNN does not have.
  template <mask Mask>
  void expect_forward(std::span<const forward_query> queries, std::span<const forward_key> keys, const head_map& heads,
                      float scale, const Mask& mask) {
    expect_tile(queries, keys, heads, scale, mask);
  }
  template <mask Mask>
  void expect_backward(std::span<const backward_query> queries, std::span<const backward_key> keys,
                       const head_map& heads, float scale, const Mask& mask) {
    expect_tile(queries, keys, heads, scale, mask);
    keys_fresh_.resize((std::max)(keys_fresh_.size(), keys.size()));
  }
  /// A whole call is cuDNN's own, from and to the trainer's tensors, where it is one part, in which every query and, in
  /// a backward, every key is seen.
  template <class Whole, mask Mask>
  [[nodiscard]] bool expect_whole(const Whole& call, const head_map& heads, float scale, const Mask& mask) {
    expect_dims(call.k.dim, call.v.dim);
    const std::vector<cudnn_part>& parts =
        calls_.expect_parts(call.query_positions, call.key_positions, mask, kernel_name());
    if (parts.size() != 1 || parts[0].queries != call.q.sequence) return false;
    if (is_backward<Whole> &&
        (parts[0].keys != call.k.sequence || tiles::template is_left_to_reference<Whole>(parts[0])))
      return false;
    expect_queries(call);
    expect_keys(call);
    memory_.needs(cudnn_region::out, call.out.size(), sizeof(T));
    memory_.needs(cudnn_region::lse, call.lse.size(), sizeof(float));
    if constexpr (is_backward<Whole>) {
      memory_.needs(cudnn_region::grad_q, call.grad_q.size(), sizeof(T));
      memory_.needs(cudnn_region::grad_k, call.grad_k.size(), sizeof(T));
      memory_.needs(cudnn_region::grad_v, call.grad_v.size(), sizeof(T));
    }
    for_cudnn_heads(heads, call.q.heads, [&](const cudnn_heads& some) {
      calls_.expect(in_place(call, parts[0], some, scale), [&](const cudnn_call&, std::int64_t workspace) {
        memory_.needs(cudnn_region::workspace, workspace, 1);
      });
    });
    return true;
  }
  void take_memory() { memory_.take(); }
  [[nodiscard]] std::int64_t bytes() const noexcept { return memory_.bytes(); }
  void begin() noexcept { memory_.begin(); }

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
              const tensor_view<T> out = memory_.packed(cudnn_region::out, now.q, now.value_dim);
              const row_view<float> lse = memory_.packed_rows(now.q);
              run(context, now.plan, {now.q.data, now.k.data, now.v.data, out.data, lse.data});
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
              const tensor_view<T> out = memory_.packed(cudnn_region::out, now.q, now.value_dim);
              const row_view<float> lse = memory_.packed_rows(now.q);
              const tensor_view<T> grad_q = memory_.packed(cudnn_region::grad_q, now.q, now.q.dim);
              const tensor_view<T> grad_k = memory_.packed(cudnn_region::grad_k, now.k, now.q.dim);
              const tensor_view<T> grad_v = memory_.packed(cudnn_region::grad_v, now.k, now.value_dim);
              launch_cudnn_rows<Device>(context, device_cudnn_rows<T>{now.grad_out, queries_of(now, query.lse),
                                                                      queries_of(now, query.delta), out, lse});
              run(context, now.plan,
                  {now.q.data, now.k.data, now.v.data, out.data, lse.data, now.grad_out.data, grad_q.data, grad_k.data,
                   grad_v.data});
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

  /// The call of `expect_whole`: nothing but cuDNN's, where the trainer's tensors lie as they were expected; those that
  /// do not are copied.
  template <mask Mask>
  void run_whole(const device_context& context, const whole_forward<T>& call, const head_map& heads, float scale,
                 const Mask&) {
    const placed_result<T> out{call.out, memory_.template region<T>(cudnn_region::out)};
    for_whole_calls(context, call, heads, scale, [&](const call_views& now) {
      const row_view<float> lse = queries_of(now, call.lse);
      const bool direct = is_packed(lse);
      const row_view<float> into = direct ? lse : memory_.packed_rows(now.q);
      run(context, now.plan, {now.q.data, now.k.data, now.v.data, queries_of(now, out.view).data, into.data});
      if (!direct) backend::copy(context, into, lse);
    });
    out.hand_out(context);
  }
  template <mask Mask>
  void run_whole(const device_context& context, const whole_backward<T>& call, const head_map& heads, float scale,
                 const Mask&) {
    const cudnn_strides as = trainers(call.out);
    tensor_view<const T> out = call.out;
    if (!memory::fits(out, as)) {
      const tensor_view<T> copy = memory::placed(out, memory_.template region<T>(cudnn_region::out), as);
      backend::copy(context, out, copy);
      out = copy;
    }
    const placed_result<T> grad_q{call.grad_q, memory_.template region<T>(cudnn_region::grad_q)};
    const placed_result<T> grad_k{call.grad_k, memory_.template region<T>(cudnn_region::grad_k)};
    const placed_result<T> grad_v{call.grad_v, memory_.template region<T>(cudnn_region::grad_v)};
    for_whole_calls(context, call, heads, scale, [&](const call_views& now) {
      row_view<const float> lse = queries_of(now, call.lse);
      if (!is_packed(lse)) {
        const row_view<float> copy = memory_.packed_rows(now.q);
        backend::copy(context, lse, copy);
        lse = copy;
      }
      // The backward reads them.
      run(context, now.plan,
          {now.q.data, now.k.data, now.v.data, const_cast<T*>(queries_of(now, out).data), const_cast<float*>(lse.data),
           now.grad_out.data, queries_of(now, grad_q.view).data, keys_of(now, grad_k.view).data,
           keys_of(now, grad_v.view).data});
    });
    for (const placed_result<T>* one : {&grad_q, &grad_k, &grad_v}) one->hand_out(context);
  }

 private:
  using backend = device_backend<Device>;

  /// A trainer's tensor to be written as a plan expects it: itself, or memory elsewhere from which it is handed out.
  template <class U>
  struct placed_result {
    tensor_view<U> trainers_own;
    tensor_view<U> view;

    placed_result(const tensor_view<U>& is, U* elsewhere)
        : trainers_own{is},
          view{memory::placed(is, memory::fits(is, trainers(is)) ? is.data : elsewhere, trainers(is))} {}
    void hand_out(const device_context& context) const {
      if (view.data != trainers_own.data) backend::copy(context, view, trainers_own);
    }
  };

  /// How a trainer's tensor is expected to lie: as by `batch_sequence_head_dim`.
  template <class U>
  static cudnn_strides trainers(const tensor_view<U>& t) noexcept {
    return {t.sequence * t.heads * t.dim, t.dim, t.heads * t.dim};
  }
  template <class U>
  static bool is_packed(const row_view<U>& r) noexcept {
    return reinterpret_cast<std::uintptr_t>(r.data) % 16 == 0 && r.sequence_stride == 1 &&
           (r.heads == 1 || r.head_stride == r.sequence) && (r.batch == 1 || r.batch_stride == r.heads * r.sequence);
  }

  // Before the first call.

  template <class Query, class Key, mask Mask>
  void expect_tile(std::span<const Query> queries, std::span<const Key> keys, const head_map& heads, float scale,
                   const Mask& mask) {
    for (const Query& query : queries) {
      if (query.own) expect_queries(query);
      for (const Key& key : keys) {
        if (key.own) expect_keys(key);
        expect_dims(key.k.dim, key.v.dim);
        for (const cudnn_part& part : calls_.expect_parts(query.positions, key.positions, mask, kernel_name())) {
          if (tiles::template is_left_to_reference<Query>(part)) continue;
          for_cudnn_heads(heads, query.q.heads, [&](const cudnn_heads& some) {
            calls_.expect(call_of(query, key, part, some, scale),
                          [&](const cudnn_call& made, std::int64_t workspace) { expect_results(made, workspace); });
          });
        }
      }
    }
  }

  void expect_results(const cudnn_call& call, std::int64_t workspace) {
    const std::int64_t rows = call.batch * call.query_heads * call.queries;
    const std::int64_t key_rows = call.batch * call.key_heads * call.keys;
    memory_.needs(cudnn_region::out, rows * call.value_dim, sizeof(T));
    memory_.needs(cudnn_region::lse, rows, sizeof(float));
    if (call.backward) {
      memory_.needs(cudnn_region::grad_q, rows * call.key_dim, sizeof(T));
      memory_.needs(cudnn_region::grad_k, key_rows * call.key_dim, sizeof(T));
      memory_.needs(cudnn_region::grad_v, key_rows * call.value_dim, sizeof(T));
    }
    memory_.needs(cudnn_region::workspace, workspace, 1);
  }

  // In a call.

  /// Calls visit(views) for each of cuDNN's calls of a pair of blocks, and single(query, key, part) for the pairs that
  /// are left to `device_reference`.
  template <class Query, class Key, class Visit, class Single>
  void for_calls(const device_context& context, const Query& given_query, const Key& given_key, const head_map& heads,
                 float scale, const Visit& visit, const Single& single) {
    const std::vector<cudnn_part>& parts = calls_.parts(given_query.positions, given_key.positions, kernel_name());
    if (parts.empty()) return;
    Query query = given_query;
    Key key = given_key;
    if (query.own) {
      query.q = memory_.as_planned(context, cudnn_region::own_q, query.q, heads.first_query_head);
      if constexpr (is_backward<Query>) {
        query.grad_out =
            memory_.as_planned(context, cudnn_region::own_grad_out, query.grad_out, heads.first_query_head);
      }
    }
    if (key.own) {
      key.k = memory_.as_planned(context, cudnn_region::own_k, key.k, heads.first_key_head);
      key.v = memory_.as_planned(context, cudnn_region::own_v, key.v, heads.first_key_head);
    }
    for (const cudnn_part& part : parts) {
      if (tiles::template is_left_to_reference<Query>(part)) {
        single(query, key, part);
        continue;
      }
      for_cudnn_heads(heads, query.q.heads, [&](const cudnn_heads& all) {
        for_pieces(call_of(query, key, part, all, scale), part, all, query, key, visit);
      });
    }
  }
  template <class Whole, class Visit>
  void for_whole_calls(const device_context& context, const Whole& given, const head_map& heads, float scale,
                       const Visit& visit) {
    const cudnn_part& part = calls_.parts(given.query_positions, given.key_positions, kernel_name())[0];
    Whole call = given;
    call.q = memory_.as_planned(context, cudnn_region::own_q, call.q, 0);
    call.k = memory_.as_planned(context, cudnn_region::own_k, call.k, 0);
    call.v = memory_.as_planned(context, cudnn_region::own_v, call.v, 0);
    if constexpr (is_backward<Whole>) {
      call.grad_out = memory_.as_planned(context, cudnn_region::own_grad_out, call.grad_out, 0);
    }
    for_cudnn_heads(heads, call.q.heads, [&](const cudnn_heads& all) {
      for_pieces(in_place(call, part, all, scale), part, all, call, call, visit);
    });
  }
  /// The same of a whole call, all of it as a trainer's tensors lie.
  template <class Whole>
  static cudnn_call in_place(const Whole& whole, const cudnn_part& part, const cudnn_heads& heads, float scale) {
    cudnn_call call = call_of(whole, whole, part, heads, scale);
    call.in_place = true;
    call.out = trainers(whole.out);
    if constexpr (is_backward<Whole>) {
      call.grad_q = trainers(whole.grad_q);
      call.grad_k = trainers(whole.grad_k);
      call.grad_v = trainers(whole.grad_v);
    }
    return call;
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

  std::vector<char> keys_fresh_;  // of the call under way
};

}  // namespace orrery::detail
