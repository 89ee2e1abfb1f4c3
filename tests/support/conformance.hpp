// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/attention.hpp"
#include "orrery/layout/named.hpp"
#include "orrery/topology/any_topology.hpp"

#include "kernel/problem.hpp"
#include "support/oracle.hpp"

/// One suite for every transport, topology, kernel, mask, layout, policy and shape: a global problem is cut as the
/// operator says, run through it, and each rank compares its own shards with the double oracle. Ranks share nothing but
/// the transport, so that each may be a process of its own.
namespace conformance {

using kernel_test::order;
using kernel_test::owned_tensor;

/// Where a trainer keeps its tensors: the order of the dimensions, and how many foreign elements lie between heads.
struct trainer_memory {
  kernel_test::order order = kernel_test::order::batch_sequence_head;
  std::int64_t margin = 0;

  [[nodiscard]] static trainer_memory of(std::uint64_t seed) {
    const kernel_test::order orders[] = {order::batch_sequence_head, order::sequence_batch_head,
                                         order::batch_head_sequence};
    return {orders[seed % 3], seed % 2 == 0 ? 0 : 3};
  }
};

/// A trainer's log-sum-exp: one number for each (batch, head, token), with strides of its own.
template <class T>
class trainer_rows {
 public:
  trainer_rows(std::int64_t batch, std::int64_t heads, std::int64_t sequence, const trainer_memory& how)
      : memory_(static_cast<std::size_t>(batch * (heads + how.margin) * (sequence + how.margin)), mark),
        view_{memory_.data(), batch, heads, sequence, (heads + how.margin) * (sequence + how.margin), 1, 1} {
    if (how.order == order::batch_head_sequence) {
      view_.head_stride = sequence + how.margin;
    } else {
      view_.sequence_stride = heads + how.margin;
    }
  }
  trainer_rows(const trainer_rows&) = delete;
  trainer_rows& operator=(const trainer_rows&) = delete;

  [[nodiscard]] const orrery::row_view<T>& view() const { return view_; }
  [[nodiscard]] std::vector<T> values() const {
    std::vector<T> all;
    each([&](T& value) { all.push_back(value); });
    return all;
  }
  void fill(T value) {
    each([&](T& element) { element = value; });
  }
  /// Are the elements outside the view as they were?
  [[nodiscard]] bool margins_kept() const {
    std::int64_t marks = 0;
    for (const T value : memory_) marks += value == mark ? 1 : 0;
    each([&](T& value) { marks -= value == mark ? 1 : 0; });
    return marks == static_cast<std::int64_t>(memory_.size()) - view_.size();
  }

 private:
  static constexpr T mark{12345};

  template <class Visit>
  void each(Visit&& visit) const {
    for (std::int64_t b = 0; b < view_.batch; ++b) {
      for (std::int64_t h = 0; h < view_.heads; ++h) {
        for (std::int64_t t = 0; t < view_.sequence; ++t) visit(*view_.at(b, h, t));
      }
    }
  }

  std::vector<T> memory_;
  orrery::row_view<T> view_;
};

template <class T>
void fill(const owned_tensor<T>& tensor, T value) {
  tensor.each(
      [&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) { tensor.view().at(b, t, h)[c] = value; });
}

template <class T>
[[nodiscard]] std::vector<T> values(const owned_tensor<T>& tensor) {
  std::vector<T> all;
  tensor.each([&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) {
    all.push_back(tensor.view().at(b, t, h)[c]);
  });
  return all;
}

/// A shard of a whole [batch, sequence, head, dim] tensor.
[[nodiscard]] inline std::vector<double> shard_of(const std::vector<double>& whole, std::int64_t batch,
                                                  std::int64_t tokens, std::int64_t heads, std::int64_t dim,
                                                  const orrery::token_positions& positions) {
  std::vector<double> shard;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < positions.size(); ++t) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t c = 0; c < dim; ++c) {
          shard.push_back(whole[kernel_test::place(b, positions[t], h, tokens, heads, dim, c)]);
        }
      }
    }
  }
  return shard;
}

/// A shard of a whole [batch, head, sequence] array.
[[nodiscard]] inline std::vector<double> rows_of(const std::vector<double>& whole, std::int64_t batch,
                                                 std::int64_t heads, std::int64_t tokens,
                                                 const orrery::token_positions& positions) {
  std::vector<double> shard;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t t = 0; t < positions.size(); ++t) {
        shard.push_back(whole[static_cast<std::size_t>((b * heads + h) * tokens + positions[t])]);
      }
    }
  }
  return shard;
}

/// One rank's tensors, in memory like a trainer's; results begin as NaN.
template <class Kernel>
struct rank_tensors {
  using storage = typename Kernel::storage;
  using log_sum_exp = orrery::detail::log_sum_exp_of<storage>;

  owned_tensor<storage> q, k, v, grad_out, out, grad_q, grad_k, grad_v;
  trainer_rows<log_sum_exp> lse;

  rank_tensors(const oracle::problem& p, const orrery::token_positions& queries, const orrery::token_positions& keys,
               const trainer_memory& how)
      : q{operand(p.q, p.shape.queries, p.shape.query_heads, p.shape.key_dim, queries, p, how)},
        k{operand(p.k, p.shape.keys, p.shape.key_heads, p.shape.key_dim, keys, p, how)},
        v{operand(p.v, p.shape.keys, p.shape.key_heads, p.shape.value_dim, keys, p, how)},
        grad_out{operand(p.grad_out, p.shape.queries, p.shape.query_heads, p.shape.value_dim, queries, p, how)},
        out{result(queries, p.shape.query_heads, p.shape.value_dim, p, how)},
        grad_q{result(queries, p.shape.query_heads, p.shape.key_dim, p, how)},
        grad_k{result(keys, p.shape.key_heads, p.shape.key_dim, p, how)},
        grad_v{result(keys, p.shape.key_heads, p.shape.value_dim, p, how)},
        lse{p.shape.batch, p.shape.query_heads, queries.size(), how} {
    poison();
  }

  /// Whoever reads a result before writing it, or leaves one out, is found out.
  void poison() {
    const storage nan = std::numeric_limits<storage>::quiet_NaN();
    for (const owned_tensor<storage>* one : {&out, &grad_q, &grad_k, &grad_v}) fill(*one, nan);
    lse.fill(std::numeric_limits<log_sum_exp>::quiet_NaN());
  }

  template <class Attention>
  void forward(Attention& attend, const orrery::output_listener& on_final = {}) {
    attend.forward(q.view(), k.view(), v.view(), out.view(), lse.view(), on_final);
  }
  /// The operands one after the other. Each part of the output must have been final when it was said to be.
  template <class Attention>
  void forward_by_tensor(Attention& attend) {
    auto call = attend.begin_forward(out.view(), lse.view());
    call.queries(q.view());
    call.progress();
    call.keys(k.view());
    call.values(v.view());
    std::vector<std::vector<double>> parts;
    std::vector<orrery::output_part> said;
    call.finish([&](const orrery::output_part& part) {
      said.push_back(part);
      parts.push_back(values_of_heads(out, part));
    });
    std::vector<int> final(static_cast<std::size_t>(q.view().heads), 0);
    for (std::size_t i = 0; i < said.size(); ++i) {
      if (said[i].side != orrery::schedule::side::query)
        throw std::logic_error{"a forward has no results of the key side"};
      for (std::int64_t h = 0; h < said[i].heads; ++h) ++final[static_cast<std::size_t>(said[i].first_head + h)];
      if (!same_bits(parts[i], values_of_heads(out, said[i])))
        throw std::logic_error{"an output that was said to be final changed"};
    }
    for (const int times : final) {
      if (times != 1) throw std::logic_error{"a head was said to be final " + std::to_string(times) + " times"};
    }
  }
  template <class Attention>
  void backward(Attention& attend, const orrery::output_listener& on_final = {}) {
    attend.backward(q.view(), k.view(), v.view(), out.view(), lse.view(), grad_out.view(), grad_q.view(), grad_k.view(),
                    grad_v.view(), on_final);
  }

  /// The bits of all results.
  [[nodiscard]] std::string bits() const {
    std::string all;
    const auto append = [&](const auto& numbers) {
      if (numbers.empty()) return;
      const std::size_t size = all.size();
      all.resize(size + numbers.size() * sizeof(numbers[0]));
      std::memcpy(&all[size], numbers.data(), all.size() - size);
    };
    for (const owned_tensor<storage>* one : {&out, &grad_q, &grad_k, &grad_v}) append(values(*one));
    append(lse.values());
    return all;
  }

  /// Has nothing been written beside the views?
  [[nodiscard]] bool margins_kept() const {
    for (const owned_tensor<storage>* one : {&out, &grad_q, &grad_k, &grad_v}) {
      if (one->marks_outside() != one->elements_outside()) return false;
    }
    return lse.margins_kept();
  }

  /// Empty, or which results differ from the oracle's, and where.
  [[nodiscard]] std::string mismatch(const oracle::problem& p, const oracle::answer& a,
                                     const orrery::token_positions& queries,
                                     const orrery::token_positions& keys) const {
    const oracle::shape& s = p.shape;
    std::string text;
    const auto compare = [&](const char* name, const std::vector<double>& expected, const auto& got) {
      const oracle::difference worst = oracle::compare(expected, got);
      if (worst.error > oracle::tolerance<storage>) text += std::string{"; "} + name + ": " + worst.text();
    };
    const auto expected_lse = rows_of(a.lse, s.batch, s.query_heads, s.queries, queries);
    compare("out", shard_of(a.out, s.batch, s.queries, s.query_heads, s.value_dim, queries), values(out));
    compare("lse", expected_lse, lse.values());
    compare("grad_q", shard_of(a.grad_q, s.batch, s.queries, s.query_heads, s.key_dim, queries), values(grad_q));
    compare("grad_k", shard_of(a.grad_k, s.batch, s.keys, s.key_heads, s.key_dim, keys), values(grad_k));
    compare("grad_v", shard_of(a.grad_v, s.batch, s.keys, s.key_heads, s.value_dim, keys), values(grad_v));

    // A query that sees no key: nothing, exactly.
    std::size_t row = 0;
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t h = 0; h < s.query_heads; ++h) {
        for (std::int64_t t = 0; t < queries.size(); ++t, ++row) {
          if (expected_lse[row] != -std::numeric_limits<double>::infinity()) continue;
          bool zero = true;
          for (std::int64_t c = 0; c < s.value_dim; ++c) zero = zero && out.view().at(b, t, h)[c] == 0;
          for (std::int64_t c = 0; c < s.key_dim; ++c) zero = zero && grad_q.view().at(b, t, h)[c] == 0;
          if (!zero) text += "; a query that sees nothing has an output or a gradient";
        }
      }
    }
    if (!margins_kept()) text += "; something was written outside the views";
    return text;
  }

 private:
  static bool same_bits(const std::vector<double>& x, const std::vector<double>& y) {
    return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(double)) == 0);
  }
  static std::vector<double> values_of_heads(const owned_tensor<storage>& tensor, const orrery::output_part& part) {
    std::vector<double> all;
    tensor.each([&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) {
      if (h < part.first_head || h >= part.first_head + part.heads) return;
      all.push_back(static_cast<double>(tensor.view().at(b, t, h)[c]));
    });
    return all;
  }
  static owned_tensor<storage> operand(const std::vector<double>& whole, std::int64_t tokens, std::int64_t heads,
                                       std::int64_t dim, const orrery::token_positions& positions,
                                       const oracle::problem& p, const trainer_memory& how) {
    kernel_test::plan plan;
    plan.layout = how.order;
    plan.margin = how.margin;
    return kernel_test::scatter<storage>(whole, p.shape.batch, tokens, heads, dim, positions, plan);
  }
  static owned_tensor<storage> result(const orrery::token_positions& positions, std::int64_t heads, std::int64_t dim,
                                      const oracle::problem& p, const trainer_memory& how) {
    return {p.shape.batch, positions.size(), heads, dim, how.order, how.margin, storage{0}};
  }
};

/// The oracle's shape of an operator's.
[[nodiscard]] inline oracle::shape oracle_shape(const orrery::attention_shape& shape) {
  return {shape.batch,
          shape.length,
          shape.key_length.value_or(shape.length),
          shape.query_heads,
          shape.key_heads.value_or(shape.query_heads),
          shape.head_dim,
          shape.value_dim.value_or(shape.head_dim),
          shape.scale.value_or(1 / std::sqrt(static_cast<double>(shape.head_dim)))};
}

/// Any layout, chosen at run time, so that what follows is compiled once for all of them.
using orrery::any_layout;

/// An operator over any transport, so that what follows is compiled once for each kernel.
template <class Kernel>
struct any_attention {
  any_attention() = default;
  any_attention(const any_attention&) = delete;
  any_attention& operator=(const any_attention&) = delete;
  virtual ~any_attention() = default;
  virtual void call(rank_tensors<Kernel>& tensors) = 0;
  virtual void call_by_tensor(rank_tensors<Kernel>& tensors) = 0;
  [[nodiscard]] virtual const orrery::token_positions& query_positions() const = 0;
  [[nodiscard]] virtual const orrery::token_positions& key_positions() const = 0;
};

template <class Kernel>
struct some_attention final : any_attention<Kernel> {
  orrery::attention<orrery::any_topology, Kernel> attend;

  template <class World, class Mask, class Layout>
  some_attention(World& on, const orrery::attention_shape& shape, const Mask& mask, const Layout& layout,
                 const orrery::any_topology& topology)
      : attend{on, shape, mask, layout, topology} {}
  void call(rank_tensors<Kernel>& tensors) override {
    tensors.forward(attend);
    tensors.backward(attend);
  }
  void call_by_tensor(rank_tensors<Kernel>& tensors) override {
    tensors.forward_by_tensor(attend);
    tensors.backward(attend);
  }
  [[nodiscard]] const orrery::token_positions& query_positions() const override { return attend.query_positions(); }
  [[nodiscard]] const orrery::token_positions& key_positions() const override { return attend.key_positions(); }
};

/// What one rank finds wrong when it calls forward and backward twice, the second time with operands that come one
/// after the other, and compares with the oracle, and the second call's bits with the first's. Empty if all is well.
template <class Kernel>
[[nodiscard]] std::string failures_of_rank(int rank, any_attention<Kernel>& attend, const oracle::problem& p,
                                           const oracle::answer& a, const trainer_memory& how) {
  const orrery::token_positions& queries = attend.query_positions();
  const orrery::token_positions& keys = attend.key_positions();
  rank_tensors<Kernel> mine{p, queries, keys, how};
  attend.call(mine);
  std::string text = mine.mismatch(p, a, queries, keys);
  const std::string bits = mine.bits();
  mine.poison();
  attend.call_by_tensor(mine);
  if (mine.bits() != bits) text += "; the second call has other bits";
  return text.empty() ? text : "rank " + std::to_string(rank) + text + "\n";
}

/// Calls the operator that `make(world&)` constructs on each of `world` ranks, by `run(world, body)`, which calls
/// `body(world&)` on them.
template <class Kernel, class Run, class Make>
[[nodiscard]] std::string failures_of(const Run& run, int world, const Make& make, const oracle::problem& p,
                                      const oracle::answer& a, std::uint64_t seed) {
  try {
    run(world, [&](auto& on) {
      const std::unique_ptr<any_attention<Kernel>> attend = make(on);
      const std::string text = failures_of_rank<Kernel>(on.rank(), *attend, p, a, trainer_memory::of(seed));
      std::string all;
      for (const std::string& of_rank : on.all_gather(text)) all += of_rank;
      if (!all.empty()) throw std::runtime_error{all};
    });
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

/// What a test does to a random problem; `as_the_oracle_sees_it` if it is for the oracle, which computes in double
/// whatever the kernel's type: there a number that is too large for that type is to be infinite.
using change_of_problem = std::function<void(oracle::problem& p, bool as_the_oracle_sees_it)>;

/// Runs one case on `world` ranks of World by `run(world, body)`, every other one with a hand-over by tensor, with an
/// `Operator` that is constructed with (world, shape, mask, layout, topology). Empty if all is well; else what all
/// ranks have found.
template <class Operator, class Kernel, class World, class Run, class Mask, class Topology>
[[nodiscard]] std::string failures_of_operator(const Run& run, int world, const orrery::attention_shape& shape,
                                               const Mask& mask, const any_layout& layout, std::uint64_t seed,
                                               const Topology& topology, const change_of_problem& change = {}) {
  auto p = oracle::random_problem<typename Kernel::storage>(oracle_shape(shape), seed);
  oracle::problem for_oracle = p;
  if (change) {
    change(p, false);
    change(for_oracle, true);
  }
  const std::function<std::unique_ptr<any_attention<Kernel>>(World&)> make = [&](World& on) {
    orrery::attention_shape planned = shape;
    if ((seed + static_cast<std::uint64_t>(world)) % 2 == 0)
      planned.operand_messages = orrery::operand_messages::per_tensor;
    return std::make_unique<Operator>(on, planned, mask, layout, topology);
  };
  return failures_of<Kernel>(run, world, make, p, oracle::solve(for_oracle, mask), seed);
}

/// The same with `orrery::attention`, whose tensors lie in host memory.
template <class Topology, class Kernel, class World, class Run, class Mask>
[[nodiscard]] std::string failures(const Run& run, int world, const orrery::attention_shape& shape, const Mask& mask,
                                   const any_layout& layout, std::uint64_t seed = 1, const Topology& topology = {},
                                   const change_of_problem& change = {}) {
  return failures_of_operator<some_attention<Kernel>, Kernel, World>(run, world, shape, mask, layout, seed, topology,
                                                                     change);
}

}  // namespace conformance
