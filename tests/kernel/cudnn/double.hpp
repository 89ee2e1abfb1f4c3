// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/device/context.hpp"
#include "orrery/kernel/cudnn/call.hpp"
#include "orrery/tensor/float16.hpp"
#include "orrery/tensor/view.hpp"

#include "device/enqueued.hpp"

/// A double of cuDNN's attention, an engine of `device_cudnn`: plain loops over the call's tensors, in double and
/// rounded once to the storage type, when the stream of the runtime double comes to them. It refuses what cuDNN 9
/// refuses, and overwrites its workspace.
namespace cudnn_double {

/// What one engine, of one rank's operator, was asked for.
struct record {
  std::vector<orrery::detail::cudnn_call> planned;
  std::vector<orrery::detail::cudnn_call> run;
  std::vector<orrery::detail::cudnn_tensors> tensors;
};

struct state {
  std::mutex mutex;
  std::vector<record> engines;  ///< in the order in which they were made
  /// Empty, or what to say of a call.
  std::function<std::string(const orrery::detail::cudnn_call&)> refuses;
  std::function<std::int64_t(const orrery::detail::cudnn_call&)> workspace;
  std::string faults;
};
inline state all;

inline void reset() {
  const std::lock_guard lock{all.mutex};
  all.engines.clear();
  all.refuses = nullptr;
  all.workspace = [](const orrery::detail::cudnn_call& call) {
    return call.backward ? call.batch * call.query_heads * call.queries * call.keys * 2 : 48;
  };
  all.faults.clear();
}

template <class T>
class attention {
 public:
  attention(const orrery::detail::cudnn_call& call, const orrery::detail::cudnn_tensors& t)
      : call_{call},
        q_{strided(t.q, call.query_heads, call.queries, call.key_dim, call.q)},
        k_{strided(t.k, call.key_heads, call.keys, call.key_dim, call.k)},
        v_{strided(t.v, call.key_heads, call.keys, call.value_dim, call.v)},
        grad_out_{strided(t.grad_out, call.query_heads, call.queries, call.value_dim, call.grad_out)},
        out_{written(t.out, call.query_heads, call.queries, call.value_dim, call.out)},
        grad_q_{written(t.grad_q, call.query_heads, call.queries, call.key_dim, call.grad_q)},
        grad_k_{written(t.grad_k, call.key_heads, call.keys, call.key_dim, call.grad_k)},
        grad_v_{written(t.grad_v, call.key_heads, call.keys, call.value_dim, call.grad_v)},
        lse_{orrery::batch_head_sequence(t.lse, call.batch, call.query_heads, call.queries)} {}

  [[nodiscard]] cuda_double::accesses accesses() const {
    using cuda_test::extent;
    if (!call_.backward) return {"cuDNN's forward", {extent(q_), extent(k_), extent(v_)}, {extent(out_), extent(lse_)}};
    return {"cuDNN's backward",
            {extent(q_), extent(k_), extent(v_), extent(grad_out_), extent(out_), extent(lse_)},
            {extent(grad_q_), extent(grad_k_), extent(grad_v_)}};
  }

  void forward() const {
    each_query([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      const std::int64_t seen = keys_seen_by(i);
      std::vector<double> scores;
      double largest = -INFINITY;
      for (std::int64_t j = 0; j < seen; ++j) {
        scores.push_back(score(b, h, i, j));
        largest = (std::max)(largest, scores.back());
      }
      double sum = 0;
      for (double& one : scores) sum += one = std::exp(one - largest);
      for (std::int64_t c = 0; c < call_.value_dim; ++c) {
        double mean = 0;
        for (std::int64_t j = 0; j < seen; ++j) {
          mean += scores[static_cast<std::size_t>(j)] * number(v_.at(b, j, key_head(h))[c]);
        }
        out_.at(b, i, h)[c] = T{static_cast<float>(mean / sum)};
      }
      *lse_.at(b, h, i) = static_cast<float>(largest + std::log(sum));
    });
  }

  void backward() const {
    std::vector<double> grad_q(elements(grad_q_)), grad_k(elements(grad_k_)), grad_v(elements(grad_v_));
    const auto at = [](std::vector<double>& sums, const orrery::tensor_view<T>& like, std::int64_t b, std::int64_t t,
                       std::int64_t h) { return sums.data() + ((b * like.sequence + t) * like.heads + h) * like.dim; };
    each_query([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      double delta = 0;
      for (std::int64_t c = 0; c < call_.value_dim; ++c) {
        delta += number(out_.at(b, i, h)[c]) * number(grad_out_.at(b, i, h)[c]);
      }
      const std::int64_t of = key_head(h);
      for (std::int64_t j = 0; j < keys_seen_by(i); ++j) {
        const double probability = std::exp(score(b, h, i, j) - static_cast<double>(*lse_.at(b, h, i)));
        double grad_probability = 0;
        for (std::int64_t c = 0; c < call_.value_dim; ++c) {
          const double grad = number(grad_out_.at(b, i, h)[c]);
          grad_probability += grad * number(v_.at(b, j, of)[c]);
          at(grad_v, grad_v_, b, j, of)[c] += probability * grad;
        }
        const double grad_score = probability * (grad_probability - delta) * static_cast<double>(call_.scale);
        for (std::int64_t c = 0; c < call_.key_dim; ++c) {
          at(grad_q, grad_q_, b, i, h)[c] += grad_score * number(k_.at(b, j, of)[c]);
          at(grad_k, grad_k_, b, j, of)[c] += grad_score * number(q_.at(b, i, h)[c]);
        }
      }
    });
    round(grad_q, grad_q_);
    round(grad_k, grad_k_);
    round(grad_v, grad_v_);
  }

 private:
  static double number(T x) { return static_cast<double>(static_cast<float>(x)); }
  static std::size_t elements(const orrery::tensor_view<T>& t) { return static_cast<std::size_t>(t.size()); }
  static void round(const std::vector<double>& from, const orrery::tensor_view<T>& to) {
    auto next = from.begin();
    for (std::int64_t b = 0; b < to.batch; ++b) {
      for (std::int64_t t = 0; t < to.sequence; ++t) {
        for (std::int64_t h = 0; h < to.heads; ++h) {
          for (std::int64_t c = 0; c < to.dim; ++c) to.at(b, t, h)[c] = T{static_cast<float>(*next++)};
        }
      }
    }
  }
  [[nodiscard]] orrery::tensor_view<const T> strided(const void* data, std::int64_t heads, std::int64_t tokens,
                                                     std::int64_t dim, const orrery::detail::cudnn_strides& s) const {
    return {static_cast<const T*>(data), call_.batch, tokens, heads, dim, s.batch, s.sequence, s.head};
  }
  [[nodiscard]] orrery::tensor_view<T> written(void* data, std::int64_t heads, std::int64_t tokens, std::int64_t dim,
                                               const orrery::detail::cudnn_strides& s) const {
    return {static_cast<T*>(data), call_.batch, tokens, heads, dim, s.batch, s.sequence, s.head};
  }
  template <class Visit>
  void each_query(const Visit& visit) const {
    for (std::int64_t b = 0; b < call_.batch; ++b) {
      for (std::int64_t h = 0; h < call_.query_heads; ++h) {
        for (std::int64_t i = 0; i < call_.queries; ++i) visit(b, h, i);
      }
    }
  }
  [[nodiscard]] std::int64_t key_head(std::int64_t head) const { return head / (call_.query_heads / call_.key_heads); }
  [[nodiscard]] std::int64_t keys_seen_by(std::int64_t query) const {
    return call_.causal ? query + call_.keys - call_.queries + 1 : call_.keys;
  }
  [[nodiscard]] double score(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    double sum = 0;
    for (std::int64_t c = 0; c < call_.key_dim; ++c)
      sum += number(q_.at(b, i, h)[c]) * number(k_.at(b, j, key_head(h))[c]);
    return sum * static_cast<double>(call_.scale);
  }

  orrery::detail::cudnn_call call_;
  orrery::tensor_view<const T> q_, k_, v_, grad_out_;
  orrery::tensor_view<T> out_, grad_q_, grad_k_, grad_v_;
  orrery::row_view<float> lse_;
};

class engine {
 public:
  engine() {
    const std::lock_guard lock{all.mutex};
    index_ = all.engines.size();
    all.engines.emplace_back();
  }

  int plan(const orrery::detail::cudnn_call& call) {
    const std::lock_guard lock{all.mutex};
    std::string why = all.refuses ? all.refuses(call) : "";
    for (const std::int64_t dim : {call.key_dim, call.value_dim}) {
      if (dim % 8 != 0 || dim > 256) why = "head dimension";
    }
    for (const orrery::detail::cudnn_strides& s :
         {call.q, call.k, call.v, call.out, call.grad_out, call.grad_q, call.grad_k, call.grad_v}) {
      if (s.batch % 8 != 0 || s.head % 8 != 0 || s.sequence % 8 != 0)
        why = "strides that are not multiples of 16 bytes";
    }
    if (call.query_heads % call.key_heads != 0) why = "heads";
    if (call.causal && call.queries > call.keys) why = "bottom right causal mask";
    if (call.backward && call.queries == 1 && call.keys == 1) why = "s_q = s_kv = 1 is not supported.";
    if (call.queries < 1 || call.keys < 1 || call.batch < 1) why = "sizes";
    if (!why.empty()) throw std::invalid_argument{"orrery: cuDNN does not have the " + call.text() + ": " + why};
    for (const orrery::detail::cudnn_call& known : plans_) {
      if (known == call) all.faults += "planned twice: " + call.text() + "\n";
    }
    plans_.push_back(call);
    all.engines[index_].planned.push_back(call);
    return static_cast<int>(plans_.size()) - 1;
  }

  [[nodiscard]] std::int64_t workspace_bytes(int plan) const {
    return all.workspace(plans_.at(static_cast<std::size_t>(plan)));
  }

  void run(int plan, const orrery::device_context& context, const orrery::detail::cudnn_tensors& tensors,
           void* workspace) {
    const orrery::detail::cudnn_call& call = plans_.at(static_cast<std::size_t>(plan));
    {
      const std::lock_guard lock{all.mutex};
      all.engines[index_].run.push_back(call);
      all.engines[index_].tensors.push_back(tensors);
      for (const void* one :
           {tensors.q, tensors.k, tensors.v, static_cast<const void*>(tensors.out),
            static_cast<const void*>(tensors.lse), tensors.grad_out, static_cast<const void*>(tensors.grad_q),
            static_cast<const void*>(tensors.grad_k), static_cast<const void*>(tensors.grad_v)}) {
        if (reinterpret_cast<std::uintptr_t>(one) % 16 != 0) all.faults += "misaligned: " + call.text() + "\n";
      }
    }
    const auto bytes = static_cast<std::size_t>(workspace_bytes(plan));
    const auto enqueue = [&](auto work) {
      cuda_double::accesses what = work.accesses();
      what.writes.push_back({workspace, static_cast<std::byte*>(workspace) + bytes});
      cuda_test::enqueued_work::enqueue(context, what, [=] {
        std::memset(workspace, 0xff, bytes);
        call.backward ? work.backward() : work.forward();
        std::memset(workspace, 0xff, bytes);
      });
    };
    if (call.type == orrery::detail::cudnn_type::bfloat16) {
      enqueue(attention<orrery::bfloat16>{call, tensors});
    } else {
      enqueue(attention<orrery::float16>{call, tensors});
    }
  }

 private:
  std::size_t index_;
  std::vector<orrery::detail::cudnn_call> plans_;
};

}  // namespace cudnn_double
