// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "orrery/attention.hpp"

namespace bench {

/// Positions for a kernel that is called by itself. Throws if there are more segments than a block has.
[[nodiscard]] inline orrery::segments segments_of(const orrery::token_positions& positions) {
  orrery::segments all;
  for (const orrery::segment& piece : positions.segments()) all.add(piece);
  return all;
}

/// Any number from -1 to 1; always the same one for the same element of the same tensor.
inline double value_at(std::uint64_t tensor, std::int64_t element) {
  std::uint64_t x = (static_cast<std::uint64_t>(element) + 1) * 0x9e3779b97f4a7c15u + tensor * 0xd1b54a32d192ed03u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<double>(x >> 11) / static_cast<double>(std::uint64_t{1} << 52) - 1.0;
}

/// Pairs of a query and a key that meet, over all query heads.
inline double visible_pairs(const orrery::attention_shape& shape, bool causal) {
  const auto n = static_cast<double>(shape.length);
  return static_cast<double>(shape.batch * shape.query_heads) * (causal ? n * (n + 1) / 2 : n * n);
}

/// Multiplications and additions of one call: two products of a query and a key forward, five backward.
inline double flop_of(const orrery::attention_shape& shape, bool causal, orrery::pass p) {
  return (p == orrery::pass::forward ? 4 : 10) * visible_pairs(shape, causal) * static_cast<double>(shape.head_dim);
}

/// What kernels sum in whose storage is T, and the type of their log-sum-exp.
template <class T>
using accumulator_of = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// The largest error that is rounding. Sums of n terms err by about sqrt(n) roundings; a few hundred terms by no more
/// than 2e-6 (float) or 1e-10 (double). Narrower types are only stored: what is compared was rounded to them, on either
/// side.
template <class T>
double tolerance(std::int64_t tokens) {
  if constexpr (sizeof(T) == 2) return 2 * static_cast<double>(std::numeric_limits<T>::epsilon());
  return (std::is_same_v<T, double> ? 1e-10 : 2e-6) * std::sqrt(std::fmax(1, static_cast<double>(tokens) / 256));
}

/// Calls of an operator on the tensors of a `Shard`, which derives from this.
template <class Shard>
class calls_on {
 public:
  template <class Attention>
  void forward(Attention& attend) {
    Shard& of = self();
    attend.forward(of.q(), of.k(), of.v(), of.out(), of.lse());
  }
  template <class Attention>
  void backward(Attention& attend) {
    Shard& of = self();
    attend.backward(of.q(), of.k(), of.v(), of.out(), of.lse(), of.grad_out(), of.grad_q(), of.grad_k(), of.grad_v());
  }
  template <class Attention>
  void call(Attention& attend, orrery::pass p) {
    if (p == orrery::pass::forward) {
      forward(attend);
    } else {
      backward(attend);
    }
  }

 private:
  Shard& self() { return static_cast<Shard&>(*this); }
};

/// The tensors of one rank's shard, whose tokens are those of `positions`, and calls on them. The same token has the
/// same values however the sequence is cut. Batch 1; the head dimensions of keys and values are equal.
template <class T>
class shard : public calls_on<shard<T>> {
 public:
  using storage = T;
  using accumulator = accumulator_of<T>;

  shard(const orrery::attention_shape& shape, const orrery::token_positions& positions)
      : shape_{shape.completed()}, positions_{positions}, tokens_{positions.size()} {
    q_ = input(1, shape_.query_heads);
    k_ = input(2, *shape_.key_heads);
    v_ = input(3, *shape_.key_heads);
    grad_out_ = input(4, shape_.query_heads);
    // Results that nobody writes, or brings here, are found out.
    const auto nan = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
    out_.assign(q_.size(), nan);
    grad_q_.assign(q_.size(), nan);
    grad_k_.assign(k_.size(), nan);
    grad_v_.assign(v_.size(), nan);
    lse_.assign(static_cast<std::size_t>(shape_.query_heads * tokens_), std::numeric_limits<accumulator>::quiet_NaN());
    delta_.resize(lse_.size());
  }

  auto q() { return of_queries(q_); }
  auto k() { return of_keys(k_); }
  auto v() { return of_keys(v_); }
  auto out() { return of_queries(out_); }
  auto grad_out() { return of_queries(grad_out_); }
  auto grad_q() { return of_queries(grad_q_); }
  auto grad_k() { return of_keys(grad_k_); }
  auto grad_v() { return of_keys(grad_v_); }
  auto lse() { return orrery::batch_head_sequence(lse_.data(), 1, shape_.query_heads, tokens_); }
  auto delta() { return orrery::batch_head_sequence(delta_.data(), 1, shape_.query_heads, tokens_); }
  const orrery::token_positions& positions() const { return positions_; }

  /// Largest distance of this shard's results from those of the whole sequence, relative to the larger of 1 and the
  /// largest element of the tensor; infinity where there is a NaN.
  double error_against(const shard& whole, orrery::pass p) const {
    const std::int64_t dim = shape_.head_dim;
    double worst = 0;
    if (p == orrery::pass::forward) {
      compare(out_, whole.out_, shape_.query_heads * dim, worst);
      double size = 1;
      for (const accumulator value : whole.lse_) size = std::fmax(size, std::abs(static_cast<double>(value)));
      for (std::int64_t h = 0; h < shape_.query_heads; ++h) {
        for (std::int64_t t = 0; t < tokens_; ++t) {
          add(worst, lse_[index(h * tokens_ + t)], whole.lse_[index(h * whole.tokens_ + positions_[t])], size);
        }
      }
    } else {
      compare(grad_q_, whole.grad_q_, shape_.query_heads * dim, worst);
      compare(grad_k_, whole.grad_k_, *shape_.key_heads * dim, worst);
      compare(grad_v_, whole.grad_v_, *shape_.key_heads * dim, worst);
    }
    return worst;
  }

 private:
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

  auto of_queries(std::vector<T>& data) {
    return orrery::batch_sequence_head_dim(data.data(), 1, tokens_, shape_.query_heads, shape_.head_dim);
  }
  auto of_keys(std::vector<T>& data) {
    return orrery::batch_sequence_head_dim(data.data(), 1, tokens_, *shape_.key_heads, shape_.head_dim);
  }

  std::vector<T> input(std::uint64_t tensor, std::int64_t heads) const {
    const std::int64_t width = heads * shape_.head_dim;
    std::vector<T> all;
    all.reserve(index(tokens_ * width));
    for (std::int64_t t = 0; t < tokens_; ++t) {
      const std::int64_t first = positions_[t] * width;
      for (std::int64_t i = 0; i < width; ++i) all.push_back(static_cast<T>(value_at(tensor, first + i)));
    }
    return all;
  }

  void compare(const std::vector<T>& mine, const std::vector<T>& whole, std::int64_t width, double& worst) const {
    double size = 1;
    for (const T value : whole) size = std::fmax(size, std::abs(static_cast<double>(value)));
    for (std::int64_t t = 0; t < tokens_; ++t) {
      for (std::int64_t i = 0; i < width; ++i) {
        add(worst, mine[index(t * width + i)], whole[index(positions_[t] * width + i)], size);
      }
    }
  }

  template <class Number>
  static void add(double& worst, Number got, Number expected, double size) {
    if (got == expected) return;
    const double error = std::abs(static_cast<double>(got) - static_cast<double>(expected)) / size;
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::fmax(worst, error);
  }

  orrery::attention_shape shape_;
  orrery::token_positions positions_;
  std::int64_t tokens_;
  std::vector<T> q_, k_, v_, out_, grad_out_, grad_q_, grad_k_, grad_v_;
  std::vector<accumulator> lse_, delta_;
};

/// A kernel without an operator, on the whole sequence: the forward, or the backward with its row dots. As many key as
/// query heads.
template <class Kernel, class Shard, class Mask>
void call_kernel(Shard& whole, orrery::pass p, const Mask& mask, const orrery::host_context& context) {
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(whole.q().dim)));
  if (p == orrery::pass::forward) {
    const orrery::forward_queries<float, float> queries{whole.q(), whole.out(), whole.lse(),
                                                        segments_of(whole.positions()), true};
    const orrery::forward_keys<float> keys{whole.k(), whole.v(), segments_of(whole.positions())};
    Kernel::template forward<Mask>(context, std::span(&queries, 1), std::span(&keys, 1), {}, scale, mask);
  } else {
    Kernel::row_dot(context, whole.out(), whole.grad_out(), whole.delta());
    const orrery::backward_queries<float, float> queries{
        whole.q(), whole.grad_out(), whole.lse(), whole.delta(), whole.grad_q(), segments_of(whole.positions()), true};
    const orrery::backward_keys<float, float> keys{
        whole.k(), whole.v(), whole.grad_k(), whole.grad_v(), segments_of(whole.positions()), true};
    Kernel::template backward<Mask>(context, std::span(&queries, 1), std::span(&keys, 1), {}, scale, mask);
  }
}

}  // namespace bench
