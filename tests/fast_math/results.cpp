// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// See results.hpp. UNIT is the function to define.
#include "fast_math/results.hpp"

#include <cstddef>
#include <span>

#include "orrery/orrery.hpp"

#include "kernel/problem.hpp"

namespace fast_math {
namespace {

using orrery::instruction_set;

template <class A>
oracle::answer doubles(const kernel_test::result<A>& from) {
  const auto wide = [](const std::vector<A>& values) { return std::vector<double>(values.begin(), values.end()); };
  return {wide(from.out), wide(from.lse), wide(from.delta), wide(from.grad_q), wide(from.grad_k), wide(from.grad_v)};
}

/// Calls use.operator()<Kernel>() for the kernel.
template <class Use>
oracle::answer with_kernel(const kernel& which, const Use& use) {
  const auto limited = [&]<class T>() {
    if (which.limit == instruction_set::baseline) {
      return use.template operator()<orrery::flash<T, instruction_set::baseline>>();
    }
    if (which.limit == instruction_set::avx2) return use.template operator()<orrery::flash<T, instruction_set::avx2>>();
    return use.template operator()<orrery::flash<T>>();
  };
  if (which.reference) return use.template operator()<orrery::reference<double>>();
  switch (which.element) {
    case element::float32:
      return limited.template operator()<float>();
    case element::float64:
      return limited.template operator()<double>();
    case element::bfloat16:
      return limited.template operator()<orrery::bfloat16>();
    case element::float16:
      return limited.template operator()<orrery::float16>();
  }
  return {};
}

oracle::answer attention(const oracle::problem& p, const call& how) {
  kernel_test::plan plan;
  plan.queries = kernel_test::zigzag(p.shape.queries, how.query_shards);
  plan.keys = kernel_test::zigzag(p.shape.keys, how.key_shards);
  return with_kernel(how.kernel, [&]<class Kernel>() {
    return doubles(kernel_test::run<Kernel>(p, orrery::causal{how.offset}, plan));
  });
}

oracle::answer merged(const oracle::problem& p, const call& how) {
  return with_kernel(how.kernel, [&]<class Kernel>() {
    using A = typename Kernel::accumulator;
    const oracle::shape& s = p.shape;
    const auto of_half = [&](int half) {
      const std::int64_t middle = s.keys / 2;
      kernel_test::plan plan;
      plan.queries = kernel_test::contiguous(s.queries, 1);
      plan.keys = {half == 0 ? kernel_test::piece(0, middle) : kernel_test::piece(middle, s.keys - middle)};
      return kernel_test::run<Kernel>(p, orrery::causal{how.offset}, plan);
    };
    kernel_test::result<A> into = of_half(0);
    kernel_test::result<A> from = of_half(1);
    const auto out = [&](kernel_test::result<A>& r) {
      return orrery::batch_sequence_head_dim(r.out.data(), s.batch, s.queries, s.query_heads, s.value_dim);
    };
    const auto lse = [&](kernel_test::result<A>& r) {
      return orrery::batch_head_sequence(r.lse.data(), s.batch, s.query_heads, s.queries);
    };
    orrery::detail::host_backend::merge(orrery::host_context{}, out(into), lse(into), out(from), lse(from));
    return doubles(into);
  });
}

/// One rank's shard of a tensor of the problem; `whole` is the tensor's place in the answer, if it is a result.
template <class T>
orrery::tensor_view<T> view_of(std::vector<T>& data, const orrery::token_positions& positions, std::int64_t heads,
                               std::int64_t dim, std::int64_t batch) {
  data.resize(static_cast<std::size_t>(batch * positions.size() * heads * dim));
  return orrery::batch_sequence_head_dim(data.data(), batch, positions.size(), heads, dim);
}

template <class T, class Visit>
void for_each_element(const orrery::tensor_view<T>& view, const orrery::token_positions& positions, std::int64_t tokens,
                      const Visit& visit) {
  for (std::int64_t b = 0; b < view.batch; ++b) {
    for (std::int64_t t = 0; t < view.sequence; ++t) {
      for (std::int64_t h = 0; h < view.heads; ++h) {
        for (std::int64_t c = 0; c < view.dim; ++c) {
          visit(view.at(b, t, h)[c], kernel_test::place(b, positions[t], h, tokens, view.heads, view.dim, c));
        }
      }
    }
  }
}

oracle::answer operated(const oracle::problem& p, std::int64_t offset, const std::string& topology, int ranks) {
  const oracle::shape& s = p.shape;
  orrery::attention_shape shape;
  shape.batch = s.batch;
  shape.length = s.queries;
  shape.key_length = s.keys;
  shape.query_heads = s.query_heads;
  shape.key_heads = s.key_heads;
  shape.head_dim = s.key_dim;
  shape.value_dim = s.value_dim;
  shape.scale = s.scale;
  const orrery::any_topology chosen = topology == "ring"         ? orrery::any_topology{orrery::ring{}}
                                      : topology == "concentric" ? orrery::any_topology{orrery::concentric<2>{}}
                                                                 : orrery::any_topology{orrery::wallfacer<2>{}};
  const auto rows = static_cast<std::size_t>(s.batch * s.query_heads * s.queries);
  oracle::answer a{
      std::vector<double>(p.grad_out.size()), std::vector<double>(rows),       {},
      std::vector<double>(p.q.size()),        std::vector<double>(p.k.size()), std::vector<double>(p.v.size())};
  orrery::threads::run(ranks, [&](auto& world) {
    orrery::attention<orrery::any_topology, orrery::flash<float>> attend{world, shape, orrery::causal{offset},
                                                                         orrery::zigzag{}, chosen};
    const orrery::token_positions& queries = attend.query_positions();
    const orrery::token_positions& keys = attend.key_positions();
    std::vector<float> memory[8];
    const auto q = view_of(memory[0], queries, s.query_heads, s.key_dim, s.batch);
    const auto k = view_of(memory[1], keys, s.key_heads, s.key_dim, s.batch);
    const auto v = view_of(memory[2], keys, s.key_heads, s.value_dim, s.batch);
    const auto grad_out = view_of(memory[3], queries, s.query_heads, s.value_dim, s.batch);
    const auto out = view_of(memory[4], queries, s.query_heads, s.value_dim, s.batch);
    const auto grad_q = view_of(memory[5], queries, s.query_heads, s.key_dim, s.batch);
    const auto grad_k = view_of(memory[6], keys, s.key_heads, s.key_dim, s.batch);
    const auto grad_v = view_of(memory[7], keys, s.key_heads, s.value_dim, s.batch);
    std::vector<float> lse_memory(static_cast<std::size_t>(s.batch * s.query_heads * queries.size()));
    const auto lse = orrery::batch_head_sequence(lse_memory.data(), s.batch, s.query_heads, queries.size());
    const auto scatter = [&](const std::vector<double>& from, const auto& to, const auto& positions, auto tokens) {
      for_each_element(to, positions, tokens, [&](float& x, std::size_t at) { x = static_cast<float>(from[at]); });
    };
    const auto gather = [&](const auto& from, std::vector<double>& to, const auto& positions, auto tokens) {
      for_each_element(from, positions, tokens, [&](float& x, std::size_t at) { to[at] = static_cast<double>(x); });
    };
    scatter(p.q, q, queries, s.queries);
    scatter(p.k, k, keys, s.keys);
    scatter(p.v, v, keys, s.keys);
    scatter(p.grad_out, grad_out, queries, s.queries);
    attend.forward(q, k, v, out, lse);
    attend.backward(q, k, v, out, lse, grad_out, grad_q, grad_k, grad_v);
    gather(out, a.out, queries, s.queries);  // each rank writes elements of its own
    gather(grad_q, a.grad_q, queries, s.queries);
    gather(grad_k, a.grad_k, keys, s.keys);
    gather(grad_v, a.grad_v, keys, s.keys);
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t h = 0; h < s.query_heads; ++h) {
        for (std::int64_t t = 0; t < queries.size(); ++t) {
          const std::int64_t at = (b * s.query_heads + h) * s.queries + queries[t];
          a.lse[static_cast<std::size_t>(at)] = static_cast<double>(*lse.at(b, h, t));
        }
      }
    }
  });
  return a;
}

template <class T>
std::vector<double> powers_of(const std::vector<double>& y, instruction_set set) {
  std::vector<T> values;
  for (const double one : y) values.push_back(static_cast<T>(one));
  values.resize((y.size() + 15) / 16 * 16);
  orrery::detail::flash_steps_for<T>(set).powers(values.data(), static_cast<std::int64_t>(values.size()));
  return std::vector<double>(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(y.size()));
}

std::vector<double> powers(const std::vector<double>& y, bool in_float, instruction_set set) {
  return in_float ? powers_of<float>(y, set) : powers_of<double>(y, set);
}

std::vector<std::uint16_t> narrowed(const std::vector<double>& values, element to, bool by_float) {
  std::vector<std::uint16_t> bits(values.size());
  const auto narrow = [&]<class T>(T) {
    for (std::size_t i = 0; i < bits.size(); ++i) {
      bits[i] = by_float ? T{static_cast<float>(values[i])}.bits : T{values[i]}.bits;
    }
  };
  to == element::float16 ? narrow(orrery::float16{}) : narrow(orrery::bfloat16{});
  return bits;
}

std::vector<double> widened(const std::vector<std::uint16_t>& bits, element from, instruction_set set) {
  std::vector<float> wide(bits.size());
  const auto steps = orrery::detail::flash_steps_for<float>(set);
  const auto widen = from == element::float16 ? steps.widen_float16 : steps.widen_bfloat16;
  widen(bits.data(), wide.data(), static_cast<std::int64_t>(bits.size()));
  return std::vector<double>(wide.begin(), wide.end());
}

}  // namespace

unit UNIT() { return {attention, merged, operated, powers, narrowed, widened}; }

}  // namespace fast_math
