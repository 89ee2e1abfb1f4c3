// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The flash kernel's speed on one thread, beside the processor's own peak of fused multiply-adds. Peak and kernel
// alternate, and each ratio is of neighbours in time, because clocks and other tenants vary. Medians.
//
//   bench_kernel_flash [sequence = 4096] [heads = 8] [repetitions = 5]
#include "orrery/kernel/flash.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/window.hpp"

#include "common/arguments.hpp"

namespace {

using clock_type = std::chrono::steady_clock;
using orrery::instruction_set;

double seconds_since(clock_type::time_point begin) {
  return std::chrono::duration<double>(clock_type::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

constexpr std::int64_t rounds = 8'000'000;

// Independent chains of multiply-adds in registers: enough to hide their latency. Flop per round are returned.
template <class T>
__attribute__((target("avx512f,fma"), noinline)) double chains_avx512(T* keep) {
  using V = typename orrery::detail::simd<T, 64>::vector;
  V sum[16];
  for (int i = 0; i < 16; ++i) sum[i] = V{} + static_cast<T>(i);  // different, or the compiler would keep one of them
  const V factor = V{} + keep[0];
  const V term = V{} + keep[1];
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) sum[i] = sum[i] * factor + term;
  }
  for (const auto& s : sum) keep[2] += s[0];
  return 16.0 * 2 * 64 / sizeof(T);
}

template <class T>
__attribute__((target("avx2,fma"), noinline)) double chains_avx2(T* keep) {
  using V = typename orrery::detail::simd<T, 32>::vector;
  V sum[12];
  for (int i = 0; i < 12; ++i) sum[i] = V{} + static_cast<T>(i);
  const V factor = V{} + keep[0];
  const V term = V{} + keep[1];
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sum[i] = sum[i] * factor + term;
  }
  for (const auto& s : sum) keep[2] += s[0];
  return 12.0 * 2 * 32 / sizeof(T);
}

/// GF/s of the best loop of multiply-adds that we know for the machine.
template <class T>
double peak() {
  T keep[3] = {static_cast<T>(0.999), static_cast<T>(0.001), T{0}};
  auto begin = clock_type::now();
  double best = chains_avx2<T>(keep) * static_cast<double>(rounds) / seconds_since(begin);
  if (orrery::widest_instruction_set() == instruction_set::avx512) {
    begin = clock_type::now();
    best = std::max(best, chains_avx512<T>(keep) * static_cast<double>(rounds) / seconds_since(begin));
  }
  volatile T sink = keep[2];
  static_cast<void>(sink);
  return best * 1e-9;
}

template <class T>
std::vector<T> values(std::int64_t count, unsigned seed) {
  std::vector<T> all(static_cast<std::size_t>(count));
  for (T& value : all) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<T>(static_cast<double>(seed >> 8) / (1 << 23) - 1.0);
  }
  return all;
}

template <class Call>
void report(const char* what, double flop, int repetitions, double (*peak_now)(), Call&& call) {
  call();
  std::vector<double> speeds, ratios;
  for (int i = 0; i < repetitions; ++i) {
    const double before = peak_now();
    const auto begin = clock_type::now();
    call();
    const double speed = flop / seconds_since(begin) * 1e-9;
    const double after = peak_now();
    speeds.push_back(speed);
    ratios.push_back(speed / std::max(before, after));
  }
  std::printf("%-44s %7.1f GF/s  %5.1f %% of peak (%.1f to %.1f)\n", what, median(speeds), 100 * median(ratios),
              100 * *std::min_element(ratios.begin(), ratios.end()),
              100 * *std::max_element(ratios.begin(), ratios.end()));
  std::fflush(stdout);
}

template <class T, instruction_set set, class Mask>
void measure(std::int64_t n, std::int64_t heads, std::int64_t dim, int repetitions, const Mask& mask, const char* name,
             const char* type) {
  using kernel = orrery::flash<T, set>;
  using A = typename kernel::accumulator;
  const std::int64_t size = n * heads * dim;
  auto q = values<T>(size, 1), k = values<T>(size, 2), v = values<T>(size, 3), grad_out = values<T>(size, 4);
  std::vector<A> out(q.size()), grad_q(q.size()), grad_k(q.size()), grad_v(q.size());
  std::vector<A> lse(static_cast<std::size_t>(n * heads)), delta(lse.size());
  const auto view = [&](auto& data) { return orrery::batch_sequence_head_dim(data.data(), 1, n, heads, dim); };
  const auto rows = [&](auto& data) { return orrery::batch_head_sequence(data.data(), 1, heads, n); };
  orrery::segments positions;
  positions.add({0, n, n, n});
  const orrery::host_context context{};
  const A scale = static_cast<A>(1.0 / 8);
  double pairs = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const orrery::position_interval seen = mask.keys_of(i, i) & orrery::position_interval{0, n - 1};
    if (!seen.empty()) pairs += static_cast<double>((seen.last - seen.first + 1) * heads);
  }
  const double forward_flop = 4.0 * pairs * static_cast<double>(dim);
  const std::string title = std::string(type) + " d " + std::to_string(dim) + " " + name;
  const orrery::forward_queries<T, A> fq{view(q), view(out), rows(lse), positions, true};
  const orrery::forward_keys<T> fk{view(k), view(v), positions};
  report(("forward " + title).c_str(), forward_flop, repetitions, peak<A>,
         [&] { kernel::template forward<Mask>(context, std::span(&fq, 1), std::span(&fk, 1), {}, scale, mask); });
  kernel::row_dot(context, view(out), view(grad_out), rows(delta));
  const orrery::backward_queries<T, A> bq{view(q),      view(grad_out), rows(lse), rows(delta),
                                          view(grad_q), positions,      true};
  const orrery::backward_keys<T, A> bk{view(k), view(v), view(grad_k), view(grad_v), positions, true};
  report(("backward " + title).c_str(), 2.5 * forward_flop, repetitions, peak<A>,
         [&] { kernel::template backward<Mask>(context, std::span(&bq, 1), std::span(&bk, 1), {}, scale, mask); });
}

/// Documents of 17 to 2000 tokens: about a thousand on average, as in what trainers pack.
orrery::documents packed(std::int64_t n) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0, left = n; left > 0; left -= lengths.back(), ++i) {
    lengths.push_back(std::min(left, 17 + i * 1237 % 1984));
  }
  return orrery::documents{lengths};
}

template <class T, instruction_set set>
void measure_all(std::int64_t n, std::int64_t heads, int repetitions, const char* type) {
  if (set > orrery::widest_instruction_set()) return;
  for (const std::int64_t dim : {64, 128}) {
    measure<T, set>(n, heads, dim, repetitions, orrery::full{}, "full", type);
    measure<T, set>(n, heads, dim, repetitions, orrery::causal{}, "causal", type);
    measure<T, set>(n, heads, dim, repetitions, packed(n) & orrery::causal{}, "causal documents", type);
    measure<T, set>(n, heads, dim, repetitions, orrery::causal{} & orrery::window{.left = 511}, "causal window 512",
                    type);
  }
}

}  // namespace

int main(int argc, char** argv) {
  bench::arguments given{argc, argv, "bench_kernel_flash [sequence = 4096] [heads = 8] [repetitions = 5]"};
  const std::int64_t n = given.number("sequence", 4096);
  const std::int64_t heads = given.number("heads", 8);
  const int repetitions = static_cast<int>(given.number("repetitions", 5, 1, 1'000'000));
  given.finish();
  std::printf("one thread, batch 1, sequence %lld, heads %lld; peak float %.1f, double %.1f GF/s\n",
              static_cast<long long>(n), static_cast<long long>(heads), peak<float>(), peak<double>());
  measure_all<float, instruction_set::avx512>(n, heads, repetitions, "float avx512");
  measure_all<double, instruction_set::avx512>(n, heads, repetitions, "double avx512");
  measure_all<orrery::bfloat16, instruction_set::avx512>(n, heads, repetitions, "bfloat16 avx512");
  measure_all<float, instruction_set::avx2>(n, heads, repetitions, "float avx2");
}
