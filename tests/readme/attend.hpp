// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <orrery/orrery.hpp>

/// What wrappers of code blocks share: one small problem, computed by any operator.
namespace readme {

inline constexpr std::int64_t length = 37, heads = 2, dim = 8;

/// Results of a forward and a backward for all tokens, [length, heads, dim].
struct results {
  std::vector<float> out, grad_q, grad_k, grad_v;

  results() : out(length * heads * dim), grad_q(out.size()), grad_k(out.size()), grad_v(out.size()) {}
};

/// Element i of tensor number `tensor`.
inline float element(std::int64_t tensor, std::int64_t i) {
  return static_cast<float>(std::sin(static_cast<double>(1 + i * 7 + tensor * 1000)));
}

/// Runs forward and backward on so many thread ranks. `around(world)` makes the transport of a rank's world.
template <class Kernel, class Topology, class Mask = orrery::full, class Layout = orrery::contiguous, class Around>
results attend_over(int ranks, const Topology& topology, const Mask& mask, const Layout& layout, const Around& around) {
  results all;
  orrery::threads::run(ranks, [&](orrery::threads::world& world) {
    auto&& transport = around(world);
    orrery::attention<Topology, Kernel> attend{
        transport, {.length = length, .query_heads = heads, .head_dim = dim}, mask, layout, topology};
    const auto& positions = attend.query_positions();
    const std::int64_t tokens = positions.size();
    std::vector<float> memory[8];
    orrery::tensor_view<float> views[8];
    for (int t = 0; t < 8; ++t) {  // q, k, v, grad_out; out, grad_q, grad_k, grad_v
      for (std::int64_t i = 0; i < tokens; ++i) {
        for (std::int64_t j = 0; j < heads * dim; ++j) {
          memory[t].push_back(t < 4 ? element(t, positions[i] * heads * dim + j) : 0.0F);
        }
      }
      views[t] = orrery::batch_sequence_head_dim(memory[t].data(), 1, tokens, heads, dim);
    }
    std::vector<typename decltype(attend)::log_sum_exp> lse_memory(static_cast<std::size_t>(heads * tokens));
    const auto lse = orrery::batch_head_sequence(lse_memory.data(), 1, heads, tokens);
    attend.forward(views[0], views[1], views[2], views[4], lse);
    attend.backward({.q = views[0],
                     .k = views[1],
                     .v = views[2],
                     .out = views[4],
                     .lse = lse,
                     .grad_out = views[3],
                     .grad_q = views[5],
                     .grad_k = views[6],
                     .grad_v = views[7]});
    std::vector<float>* const whole[] = {&all.out, &all.grad_q, &all.grad_k, &all.grad_v};
    for (int t = 0; t < 4; ++t) {
      for (std::int64_t i = 0; i < tokens; ++i) {
        std::copy_n(memory[4 + t].begin() + i * heads * dim, heads * dim,
                    whole[t]->begin() + positions[i] * heads * dim);
      }
    }
  });
  return all;
}

template <class Kernel, class Topology, class Mask = orrery::full, class Layout = orrery::contiguous>
results attend_over(int ranks, const Topology& topology, const Mask& mask = {}, const Layout& layout = {}) {
  return attend_over<Kernel>(
      ranks, topology, mask, layout, [](auto& world) -> auto& { return world; });
}

/// Are they the same but for rounding?
inline bool alike(const results& a, const results& b) {
  const auto close = [](const std::vector<float>& x, const std::vector<float>& y) {
    return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                      [](float one, float other) { return std::abs(one - other) < 1e-4F; });
  };
  return close(a.out, b.out) && close(a.grad_q, b.grad_q) && close(a.grad_k, b.grad_k) && close(a.grad_v, b.grad_v);
}

}  // namespace readme
