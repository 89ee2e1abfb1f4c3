// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What it costs the flash kernel that a shard is two chunks of one segment instead of one block of two: the tiles of a
// causal zigzag ring, forward and backward, on one thread. Both kinds alternate; times are of the thread's processor,
// and ratios of neighbours in time, because clocks and other tenants vary. Medians.
//
//   bench_kernel_chunks [tokens of a shard = 4096] [heads = 4] [repetitions = 9]
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <utility>
#include <vector>

#include <time.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/mask.hpp"

#include "common/arguments.hpp"

namespace {

using kernel = orrery::flash<float>;
using queries_of_tile = orrery::forward_queries<float, float>;
using keys_of_tile = orrery::forward_keys<float>;
using backward_queries = orrery::backward_queries<float, float>;
using backward_keys = orrery::backward_keys<float, float>;

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// One tensor of a shard: whole, or each of its chunks packed by itself, as they travel.
struct tensor {
  std::vector<float> memory;
  std::int64_t heads, dim;

  tensor(std::int64_t tokens, std::int64_t of_heads, std::int64_t of_dim, unsigned seed)
      : memory(static_cast<std::size_t>(tokens * of_heads * of_dim)), heads{of_heads}, dim{of_dim} {
    for (float& value : memory) {
      seed = seed * 1664525u + 1013904223u;
      value = static_cast<float>(seed >> 8) / (1 << 23) - 1.0f;
    }
  }
  [[nodiscard]] orrery::tensor_view<float> block(std::int64_t first, std::int64_t tokens) {
    return orrery::batch_head_sequence_dim(memory.data() + first * heads * dim, 1, heads, tokens, dim);
  }
  [[nodiscard]] orrery::row_view<float> rows(std::int64_t first, std::int64_t tokens) {
    return orrery::batch_head_sequence(memory.data() + first * heads, 1, heads, tokens);
  }
};

/// A rank's tensors, which both kinds use.
struct shard {
  tensor q, k, v, out, lse, grad_out, delta, grad_q, grad_k, grad_v;

  shard(std::int64_t tokens, std::int64_t heads, std::int64_t dim, unsigned seed)
      : q{tokens, heads, dim, seed},
        k{tokens, heads, dim, seed + 1},
        v{tokens, heads, dim, seed + 2},
        out{tokens, heads, dim, seed + 3},
        lse{tokens, heads, 1, seed + 4},
        grad_out{tokens, heads, dim, seed + 5},
        delta{tokens, heads, 1, seed + 6},
        grad_q{tokens, heads, dim, seed + 7},
        grad_k{tokens, heads, dim, seed + 8},
        grad_v{tokens, heads, dim, seed + 9} {
    for (float& value : lse.memory) value = 8;
  }
};

/// The blocks of a shard: one, or its two chunks.
std::vector<orrery::segments> blocks_of(int rank, int world, std::int64_t length, bool chunks) {
  if (!chunks) return {orrery::zigzag::shard(rank, world, length)};
  return {orrery::zigzag::chunk(rank, 0, world, length), orrery::zigzag::chunk(rank, 1, world, length)};
}

double seconds_of(bool backward, bool chunks, shard& queries, shard& keys, int q, int k, int world,
                  std::int64_t length) {
  const orrery::head_map heads;
  std::vector<queries_of_tile> forward_q;
  std::vector<keys_of_tile> forward_k;
  std::vector<backward_queries> backward_q;
  std::vector<backward_keys> backward_k;
  std::int64_t first = 0;
  for (const orrery::segments& one : blocks_of(q, world, length, chunks)) {
    const std::int64_t n = one.tokens();
    forward_q.push_back(
        {queries.q.block(first, n), queries.out.block(first, n), queries.lse.rows(first, n), one, true, false});
    backward_q.push_back({queries.q.block(first, n), queries.grad_out.block(first, n), queries.lse.rows(first, n),
                          queries.delta.rows(first, n), queries.grad_q.block(first, n), one, true, false});
    first += n;
  }
  first = 0;
  for (const orrery::segments& one : blocks_of(k, world, length, chunks)) {
    const std::int64_t n = one.tokens();
    forward_k.push_back({keys.k.block(first, n), keys.v.block(first, n), one, false});
    backward_k.push_back({keys.k.block(first, n), keys.v.block(first, n), keys.grad_k.block(first, n),
                          keys.grad_v.block(first, n), one, true, false});
    first += n;
  }
  const double begin = processor_seconds();
  if (backward) {
    kernel::backward({}, std::span<const backward_queries>{backward_q}, std::span<const backward_keys>{backward_k},
                     heads, 0.125f, orrery::causal{});
  } else {
    kernel::forward({}, std::span<const queries_of_tile>{forward_q}, std::span<const keys_of_tile>{forward_k}, heads,
                    0.125f, orrery::causal{});
  }
  return processor_seconds() - begin;
}

}  // namespace

int main(int argc, char** argv) {
  bench::arguments given{argc, argv, "bench_kernel_chunks [tokens = 4096] [heads = 4] [repetitions = 9]"};
  const std::int64_t tokens = given.number("tokens", 4096, 2);
  const std::int64_t heads = given.number("heads", 4);
  const int repetitions = static_cast<int>(given.number("repetitions", 9, 1, 1'000'000));
  given.finish();
  constexpr int world = 8;
  const std::int64_t length = tokens * world;
  for (const std::int64_t dim : {64, 128}) {
    shard one{tokens, heads, dim, 1}, other{tokens, heads, dim, 100};
    for (const bool backward : {false, true}) {
      for (const auto& [q, k] : {std::pair{3, 3}, {3, 1}, {3, 6}}) {
        std::vector<double> ratios, whole;
        for (int i = 0; i <= repetitions; ++i) {
          const double before = seconds_of(backward, false, one, other, q, k, world, length);
          const double chunks = seconds_of(backward, true, one, other, q, k, world, length);
          const double after = seconds_of(backward, false, one, other, q, k, world, length);
          if (i == 0) continue;  // warms up
          ratios.push_back(2 * chunks / (before + after));
          whole.push_back(before);
        }
        std::printf("%-8s head dimension %3d, query shard %d x key shard %d: whole %7.2f ms, chunks take %.3f of it\n",
                    backward ? "backward" : "forward", static_cast<int>(dim), q, k, 1e3 * median(whole),
                    median(ratios));
      }
    }
  }
  return 0;
}
