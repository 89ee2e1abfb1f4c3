// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory_resource>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "orrery/attention/tile.hpp"
#include "orrery/host/context.hpp"
#include "orrery/host/thread_team.hpp"
#include "orrery/layout/token_positions.hpp"

#include "support/oracle.hpp"

/// Runs a kernel on a whole problem cut into shards, as a schedule would, and gathers what it wrote.
namespace kernel_test {

using orrery::segment;
using orrery::segments;
using orrery::token_positions;

/// Where tensors are and how kernels that only enqueue are waited for: for the tests of kernels that do not run on the
/// host.
struct tensor_home {
  std::pmr::memory_resource* memory = std::pmr::new_delete_resource();
  void (*wait)() = [] {};
};
inline tensor_home home;

/// One shard of a sequence: which positions its local tokens have.
using sharding = std::vector<segments>;

[[nodiscard]] inline segments piece(std::int64_t begin, std::int64_t count) {
  segments s;
  s.add({begin, count, count, count});
  return s;
}

/// `shards` consecutive pieces, as equal as they can be; some may be empty.
[[nodiscard]] inline sharding contiguous(std::int64_t length, std::int64_t shards) {
  sharding all;
  for (std::int64_t i = 0; i < shards; ++i) {
    const std::int64_t begin = length * i / shards;
    all.push_back(piece(begin, length * (i + 1) / shards - begin));
  }
  return all;
}

/// Shard i holds pieces i and 2 * shards - 1 - i of 2 * shards.
[[nodiscard]] inline sharding zigzag(std::int64_t length, std::int64_t shards) {
  sharding all;
  const auto edge = [&](std::int64_t i) { return length * i / (2 * shards); };
  for (std::int64_t i = 0; i < shards; ++i) {
    segments s;
    const std::int64_t j = 2 * shards - 1 - i;
    s.add({edge(i), edge(i + 1) - edge(i), (std::max)(std::int64_t{1}, edge(i + 1) - edge(i)), 1});
    s.add({edge(j), edge(j + 1) - edge(j), (std::max)(std::int64_t{1}, edge(j + 1) - edge(j)), 1});
    all.push_back(s);
  }
  return all;
}

/// Runs of `run` tokens are dealt out in turn.
[[nodiscard]] inline sharding striped(std::int64_t length, std::int64_t shards, std::int64_t run) {
  sharding all;
  for (std::int64_t i = 0; i < shards; ++i) {
    std::int64_t count = 0;
    for (std::int64_t at = i * run; at < length; at += shards * run) count += (std::min)(run, length - at);
    segments s;
    s.add({i * run, count, run, shards * run});
    all.push_back(s);
  }
  return all;
}

/// How a test lays a tensor out in memory.
enum class order { batch_sequence_head, sequence_batch_head, batch_head_sequence };

/// A tensor that owns its memory, with a margin around each row: everything outside the view's elements holds a mark,
/// so that a test sees any write that strays.
template <class T>
class owned_tensor {
 public:
  owned_tensor(std::int64_t batch, std::int64_t sequence, std::int64_t heads, std::int64_t dim, order layout,
               std::int64_t margin, T fill)
      : memory_(static_cast<std::size_t>(batch * sequence * heads * (dim + margin) + 2 * margin), mark, home.memory) {
    const std::int64_t row = dim + margin;
    switch (layout) {
      case order::batch_sequence_head:
        view_ = orrery::batch_sequence_head_dim<T>(nullptr, batch, sequence, heads, row);
        break;
      case order::sequence_batch_head:
        view_ = orrery::sequence_batch_head_dim<T>(nullptr, sequence, batch, heads, row);
        break;
      case order::batch_head_sequence:
        view_ = orrery::batch_head_sequence_dim<T>(nullptr, batch, heads, sequence, row);
        break;
    }
    view_.dim = dim;
    view_.data = memory_.data() + margin;
    each([&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) { view_.at(b, t, h)[c] = fill; });
  }
  // The view points into the memory, which a copy would not share.
  owned_tensor(const owned_tensor&) = delete;
  owned_tensor(owned_tensor&&) noexcept = default;

  [[nodiscard]] const orrery::tensor_view<T>& view() const { return view_; }

  template <class Visit>
  void each(Visit&& visit) const {
    for (std::int64_t b = 0; b < view_.batch; ++b) {
      for (std::int64_t t = 0; t < view_.sequence; ++t) {
        for (std::int64_t h = 0; h < view_.heads; ++h) {
          for (std::int64_t c = 0; c < view_.dim; ++c) visit(b, t, h, c);
        }
      }
    }
  }

  /// Elements that hold the mark; those outside the view must stay so.
  [[nodiscard]] std::int64_t marks_outside() const {
    std::int64_t count = 0;
    for (const T value : memory_) count += value == mark ? 1 : 0;
    each([&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) {
      count -= view_.at(b, t, h)[c] == mark ? 1 : 0;
    });
    return count;
  }
  [[nodiscard]] std::int64_t elements_outside() const {
    return static_cast<std::int64_t>(memory_.size()) - view_.size();
  }

 private:
  static constexpr T mark = T{12345};
  std::pmr::vector<T> memory_;
  orrery::tensor_view<T> view_;
};

/// One number per (batch, head, token), likewise.
template <class T>
class owned_rows {
 public:
  owned_rows(std::int64_t batch, std::int64_t heads, std::int64_t sequence, T fill)
      : memory_(static_cast<std::size_t>(batch * heads * sequence), fill, home.memory),
        view_(orrery::batch_head_sequence<T>(memory_.data(), batch, heads, sequence)) {}
  owned_rows(const owned_rows&) = delete;
  owned_rows(owned_rows&&) noexcept = default;
  [[nodiscard]] const orrery::row_view<T>& view() const { return view_; }

 private:
  std::pmr::vector<T> memory_;
  orrery::row_view<T> view_;
};

/// How a problem is cut and called.
struct plan {
  sharding queries;
  sharding keys;
  order layout = order::batch_sequence_head;
  std::int64_t margin = 0;
  bool one_call = false;     ///< all shards of both sides in the spans of one call, rather than one call for each pair
  bool clear_first = false;  ///< hand over cleared results that are not fresh, rather than NaN that are
  orrery::thread_team* team = nullptr;
};

/// What a kernel wrote, in the oracle's order, and whether it kept to its views.
template <class A>
struct result {
  std::vector<A> out, lse, delta, grad_q, grad_k, grad_v;
  bool stayed_inside = true;
};

inline std::size_t place(std::int64_t b, std::int64_t token, std::int64_t head, std::int64_t tokens, std::int64_t heads,
                         std::int64_t dim, std::int64_t c) {
  return static_cast<std::size_t>(((b * tokens + token) * heads + head) * dim + c);
}

/// A shard of a tensor of the problem.
template <class T>
owned_tensor<T> scatter(const std::vector<double>& from, std::int64_t batch, std::int64_t tokens, std::int64_t heads,
                        std::int64_t dim, const token_positions& positions, const plan& how) {
  owned_tensor<T> to{batch, positions.size(), heads, dim, how.layout, how.margin, T{0}};
  to.each([&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) {
    to.view().at(b, t, h)[c] = static_cast<T>(from[place(b, positions[t], h, tokens, heads, dim, c)]);
  });
  return to;
}

template <class A>
void gather(const owned_tensor<A>& from, std::vector<A>& to, std::int64_t tokens, const token_positions& positions,
            bool& stayed_inside) {
  const auto& view = from.view();
  from.each([&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) {
    to[place(b, positions[t], h, tokens, view.heads, view.dim, c)] = view.at(b, t, h)[c];
  });
  stayed_inside = stayed_inside && from.marks_outside() == from.elements_outside();
}

/// A kernel's calls, whatever its mask, so that what follows is compiled once for each element type.
template <class S, class A>
struct calls {
  std::function<void(std::span<const orrery::forward_queries<S, A>>, std::span<const orrery::forward_keys<S>>)> forward;
  std::function<void(std::span<const orrery::backward_queries<S, A>>, std::span<const orrery::backward_keys<S, A>>)>
      backward;
  std::function<void(const orrery::tensor_view<A>&, const orrery::tensor_view<S>&, const orrery::row_view<A>&)> row_dot;
};

/// Forward, row dots and backward over all pairs of shards.
template <class S, class A>
result<A> run_calls(const oracle::problem& p, const plan& how, const calls<S, A>& kernel) {
  using forward_queries = orrery::forward_queries<S, A>;
  using forward_keys = orrery::forward_keys<S>;
  using backward_queries = orrery::backward_queries<S, A>;
  using backward_keys = orrery::backward_keys<S, A>;
  const oracle::shape& s = p.shape;
  const A nan = std::numeric_limits<A>::quiet_NaN();
  const A initial = how.clear_first ? A{0} : nan;

  std::vector<owned_tensor<S>> q, k, v, grad_out;
  std::vector<owned_tensor<A>> out, grad_q, grad_k, grad_v;
  std::vector<owned_rows<A>> lse, delta;
  const auto results = [&](std::int64_t tokens, std::int64_t count, std::int64_t dim) {
    return owned_tensor<A>{s.batch, tokens, count, dim, how.layout, how.margin, initial};
  };
  for (const segments& positions : how.queries) {
    const std::int64_t n = positions.tokens();
    q.push_back(scatter<S>(p.q, s.batch, s.queries, s.query_heads, s.key_dim, positions, how));
    grad_out.push_back(scatter<S>(p.grad_out, s.batch, s.queries, s.query_heads, s.value_dim, positions, how));
    out.push_back(results(n, s.query_heads, s.value_dim));
    grad_q.push_back(results(n, s.query_heads, s.key_dim));
    lse.emplace_back(s.batch, s.query_heads, n, how.clear_first ? -std::numeric_limits<A>::infinity() : nan);
    delta.emplace_back(s.batch, s.query_heads, n, nan);
  }
  for (const segments& positions : how.keys) {
    const std::int64_t n = positions.tokens();
    k.push_back(scatter<S>(p.k, s.batch, s.keys, s.key_heads, s.key_dim, positions, how));
    v.push_back(scatter<S>(p.v, s.batch, s.keys, s.key_heads, s.value_dim, positions, how));
    grad_k.push_back(results(n, s.key_heads, s.key_dim));
    grad_v.push_back(results(n, s.key_heads, s.value_dim));
  }

  std::vector<forward_queries> fq;
  std::vector<forward_keys> fk;
  std::vector<backward_queries> bq;
  std::vector<backward_keys> bk;
  for (std::size_t i = 0; i < how.queries.size(); ++i) {
    fq.push_back({q[i].view(), out[i].view(), lse[i].view(), how.queries[i], !how.clear_first});
    bq.push_back({q[i].view(), grad_out[i].view(), lse[i].view(), delta[i].view(), grad_q[i].view(), how.queries[i],
                  !how.clear_first});
  }
  for (std::size_t j = 0; j < how.keys.size(); ++j) {
    fk.push_back({k[j].view(), v[j].view(), how.keys[j]});
    bk.push_back({k[j].view(), v[j].view(), grad_k[j].view(), grad_v[j].view(), how.keys[j], !how.clear_first});
  }

  // The keys in reverse and the queries in turn, so that running results meet their blocks in no natural order.
  if (how.one_call) {
    kernel.forward(fq, fk);
  } else {
    for (std::size_t j = fk.size(); j-- > 0;) {
      for (forward_queries& side : fq) {
        kernel.forward(std::span(&side, 1), std::span(&fk[j], 1));
        side.fresh = false;
      }
    }
  }
  for (std::size_t i = 0; i < q.size(); ++i) {
    kernel.row_dot(out[i].view(), grad_out[i].view(), delta[i].view());
  }
  if (how.one_call) {
    kernel.backward(bq, bk);
  } else {
    for (std::size_t j = bk.size(); j-- > 0;) {
      for (backward_queries& side : bq) {
        kernel.backward(std::span(&side, 1), std::span(&bk[j], 1));
        side.fresh = false;
        bk[j].fresh = false;
      }
    }
  }

  home.wait();

  result<A> r;
  r.out.resize(p.grad_out.size());
  r.grad_q.resize(p.q.size());
  r.grad_k.resize(p.k.size());
  r.grad_v.resize(p.v.size());
  r.lse.resize(static_cast<std::size_t>(s.batch * s.query_heads * s.queries));
  r.delta = r.lse;
  for (std::size_t i = 0; i < q.size(); ++i) {
    gather(out[i], r.out, s.queries, how.queries[i], r.stayed_inside);
    gather(grad_q[i], r.grad_q, s.queries, how.queries[i], r.stayed_inside);
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t h = 0; h < s.query_heads; ++h) {
        for (std::int64_t t = 0; t < how.queries[i].tokens(); ++t) {
          const auto at = static_cast<std::size_t>((b * s.query_heads + h) * s.queries + how.queries[i].position(t));
          r.lse[at] = *lse[i].view().at(b, h, t);
          r.delta[at] = *delta[i].view().at(b, h, t);
        }
      }
    }
  }
  for (std::size_t j = 0; j < k.size(); ++j) {
    gather(grad_k[j], r.grad_k, s.keys, how.keys[j], r.stayed_inside);
    gather(grad_v[j], r.grad_v, s.keys, how.keys[j], r.stayed_inside);
  }
  return r;
}

/// The same of `Kernel` with `mask`.
template <class Kernel, class Mask>
result<typename Kernel::accumulator> run(const oracle::problem& p, const Mask& mask, const plan& how) {
  using S = typename Kernel::storage;
  using A = typename Kernel::accumulator;
  typename Kernel::context context{};
  if constexpr (std::is_same_v<typename Kernel::context, orrery::host_context>) context.team = how.team;
  const orrery::head_map heads{0, 0, p.shape.group()};
  const auto scale = static_cast<A>(p.shape.scale);
  return run_calls<S, A>(
      p, how,
      {[&](const auto& queries, const auto& keys) { Kernel::forward(context, queries, keys, heads, scale, mask); },
       [&](const auto& queries, const auto& keys) { Kernel::backward(context, queries, keys, heads, scale, mask); },
       [&](const auto& out, const auto& grad_out, const auto& delta) {
         Kernel::row_dot(context, out, grad_out, delta);
       }});
}

}  // namespace kernel_test
