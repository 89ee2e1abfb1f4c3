// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "orrery/mask/mask.hpp"

/// What the tests compare with: attention over whole tensors, written down as in a textbook and sharing no code with
/// the library but the masks. Full score matrix, plain softmax, everything in double.
namespace oracle {

/// Shapes of one attention. Query head h reads key head h / (query_heads / key_heads).
struct shape {
  std::int64_t batch = 1;
  std::int64_t queries = 1;
  std::int64_t keys = 1;
  std::int64_t query_heads = 1;
  std::int64_t key_heads = 1;
  std::int64_t key_dim = 1;
  std::int64_t value_dim = 1;
  double scale = 1.0;

  [[nodiscard]] std::int64_t group() const { return query_heads / key_heads; }
};

/// All tensors contiguous in [batch, sequence, head, dim]; lse and delta in [batch, head, sequence]; double whatever
/// the kernel's type, so that values are rounded once, when they are handed to the kernel.
struct problem {
  oracle::shape shape;
  std::vector<double> q, k, v, grad_out;
};

struct answer {
  std::vector<double> out, lse, delta, grad_q, grad_k, grad_v;
};

[[nodiscard]] inline std::vector<double> random_values(std::int64_t count, std::uint64_t seed, double magnitude = 1.0) {
  std::mt19937_64 engine{seed * 0x9e3779b97f4a7c15ULL + 1};
  std::vector<double> values(static_cast<std::size_t>(count));
  // Our own map to [-1, 1): std::uniform_real_distribution differs between standard libraries.
  for (double& value : values) value = (static_cast<double>(engine() >> 11) * 0x1p-52 - 1.0) * magnitude;
  return values;
}

/// Values that are exact in T, so that the oracle and the kernel see the same numbers.
template <class T>
inline void round_to(std::vector<double>& values) {
  for (double& value : values) value = static_cast<double>(static_cast<T>(value));
}

template <class T>
[[nodiscard]] inline problem random_problem(const shape& s, std::uint64_t seed, double magnitude = 1.0) {
  problem p{s, random_values(s.batch * s.queries * s.query_heads * s.key_dim, seed * 4, magnitude),
            random_values(s.batch * s.keys * s.key_heads * s.key_dim, seed * 4 + 1, magnitude),
            random_values(s.batch * s.keys * s.key_heads * s.value_dim, seed * 4 + 2),
            random_values(s.batch * s.queries * s.query_heads * s.value_dim, seed * 4 + 3)};
  round_to<T>(p.q);
  round_to<T>(p.k);
  round_to<T>(p.v);
  round_to<T>(p.grad_out);
  return p;
}

/// Attention and its gradients by definition; query token i has position i, key token j position j, and `visible_to(i,
/// j)` says whether i sees j. A score of -infinity hides its pair; a score that is NaN or +infinity makes `out` and
/// `lse` of its row NaN.
[[nodiscard]] inline answer solve(const problem& p, const std::function<bool(std::int64_t, std::int64_t)>& visible_to) {
  const shape& s = p.shape;
  const auto at = [](std::int64_t b, std::int64_t token, std::int64_t head, std::int64_t tokens, std::int64_t heads,
                     std::int64_t dim) {
    return static_cast<std::size_t>(((b * tokens + token) * heads + head) * dim);
  };
  const auto dot = [](const std::vector<double>& x, std::size_t i, const std::vector<double>& y, std::size_t j,
                      std::int64_t dim) {
    double sum = 0;
    for (std::size_t c = 0; c < static_cast<std::size_t>(dim); ++c) sum += x[i + c] * y[j + c];
    return sum;
  };
  const auto rows = static_cast<std::size_t>(s.batch * s.query_heads * s.queries);
  answer a{std::vector<double>(p.grad_out.size()), std::vector<double>(rows),       std::vector<double>(rows),
           std::vector<double>(p.q.size()),        std::vector<double>(p.k.size()), std::vector<double>(p.v.size())};
  const auto keys = static_cast<std::size_t>(s.keys);
  std::vector<double> score(keys), probability(keys), grad(keys);
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t head = 0; head < s.query_heads; ++head) {
      const std::int64_t key_head = head / s.group();
      for (std::int64_t i = 0; i < s.queries; ++i) {
        const std::size_t qi = at(b, i, head, s.queries, s.query_heads, s.key_dim);
        const std::size_t oi = at(b, i, head, s.queries, s.query_heads, s.value_dim);
        const auto row = static_cast<std::size_t>((b * s.query_heads + head) * s.queries + i);
        const auto kj = [&](std::size_t j) {
          return at(b, static_cast<std::int64_t>(j), key_head, s.keys, s.key_heads, s.key_dim);
        };
        const auto vj = [&](std::size_t j) {
          return at(b, static_cast<std::int64_t>(j), key_head, s.keys, s.key_heads, s.value_dim);
        };
        // A pair whose score is -infinity is hidden, like one that the mask hides: nothing is computed of it.
        const auto is_hidden = [&](std::size_t j) { return score[j] == -std::numeric_limits<double>::infinity(); };
        double largest = -std::numeric_limits<double>::infinity();
        bool sees = false;
        for (std::size_t j = 0; j < keys; ++j) {
          const bool visible = visible_to(i, static_cast<std::int64_t>(j));
          score[j] = visible ? s.scale * dot(p.q, qi, p.k, kj(j), s.key_dim) : -std::numeric_limits<double>::infinity();
          largest = (std::max)(largest, score[j]);
          sees = sees || !is_hidden(j);
        }
        a.lse[row] = -std::numeric_limits<double>::infinity();
        a.delta[row] = 0;
        if (!sees) continue;
        // One score that is NaN or +infinity makes the sum NaN, and so all of the row.
        double sum = 0;
        for (std::size_t j = 0; j < keys; ++j) {
          if (!is_hidden(j)) sum += probability[j] = std::exp(score[j] - largest);
        }
        a.lse[row] = largest + std::log(sum);
        for (std::size_t j = 0; j < keys; ++j) {
          if (is_hidden(j)) continue;
          probability[j] /= sum;
          for (std::size_t c = 0; c < static_cast<std::size_t>(s.value_dim); ++c) {
            a.out[oi + c] += probability[j] * p.v[vj(j) + c];
            a.grad_v[vj(j) + c] += probability[j] * p.grad_out[oi + c];
          }
          grad[j] = dot(p.grad_out, oi, p.v, vj(j), s.value_dim);
        }
        a.delta[row] = dot(a.out, oi, p.grad_out, oi, s.value_dim);
        for (std::size_t j = 0; j < keys; ++j) {
          if (is_hidden(j)) continue;
          const double grad_score = probability[j] * (grad[j] - a.delta[row]) * s.scale;
          for (std::size_t c = 0; c < static_cast<std::size_t>(s.key_dim); ++c) {
            a.grad_q[qi + c] += grad_score * p.k[kj(j) + c];
            a.grad_k[kj(j) + c] += grad_score * p.q[qi + c];
          }
        }
      }
    }
  }
  return a;
}

template <class Mask>
  requires requires(const Mask& mask) { mask.visible(std::int64_t{0}, std::int64_t{0}); }
[[nodiscard]] answer solve(const problem& p, const Mask& mask) {
  return solve(p, [&](std::int64_t query, std::int64_t key) { return mask.visible(query, key); });
}

/// The bound on `error` for a kernel that computes in T. Sums of n terms of size 1 err by about sqrt(n) roundings, and
/// the tests sum up to a few hundred terms, through two or three products: some tens of roundings of 1.1e-16 (double)
/// or 6e-8 (float). 1e-10 and 2e-6 are what strict peers promise (references.md, section 3). Types of 16 bits are
/// rounded to at the end, by half a unit in the last place, and once before, where the backward reads out: a unit in
/// all.
template <class T>
inline constexpr double tolerance = sizeof(T) == 2
                                        ? static_cast<double>(static_cast<float>(std::numeric_limits<T>::epsilon()))
                                    : std::is_same_v<T, double> ? 1e-10
                                                                : 2e-6;

/// Largest distance of two tensors, relative to the larger of 1 and the largest element expected. Relative to the whole
/// tensor, because an element may be a small difference of large terms; never relative to less than 1, because inputs
/// are of size 1 and so are the terms of every sum. Infinities must agree, and NaN agrees with NaN alone.
struct difference {
  double error = 0;
  std::size_t where = 0;
  double expected = 0;
  double got = 0;
  bool shapes_differ = false;

  [[nodiscard]] std::string text() const {
    std::ostringstream words;
    words.precision(17);
    if (shapes_differ) return "the sizes differ";
    words << "largest error " << error << " at element " << where << ": expected " << expected << ", got " << got;
    return words.str();
  }
};

template <class T>
[[nodiscard]] difference compare(const std::vector<double>& expected, const std::vector<T>& got) {
  difference worst;
  worst.shapes_differ = expected.size() != got.size();
  if (worst.shapes_differ) {
    worst.error = std::numeric_limits<double>::infinity();
    return worst;
  }
  double size = 1.0;
  for (const double value : expected) {
    if (std::isfinite(value)) size = (std::max)(size, std::abs(value));
  }
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto value = static_cast<double>(got[i]);
    double error = std::abs(value - expected[i]) / size;
    if (std::isinf(expected[i]) && value == expected[i]) error = 0;
    if (std::isnan(expected[i]) && std::isnan(value)) error = 0;
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    if (error > worst.error) worst = {error, i, expected[i], value, false};
  }
  return worst;
}

}  // namespace oracle
