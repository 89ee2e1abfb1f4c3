// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The flash kernel beside attention made of calls of OpenBLAS: tile by tile with an online softmax, and with the full
// score matrix of a head. All run on the same threads, take turns, and (but for `plain`) share the vectorised
// exponential, so that what differs is what BLAS makes of the products; `plain` is `tiled` as one would write it at
// first, with std::exp2 in a loop. Rivals' heads are shared by the threads, each of which calls a sequential BLAS.
// Speeds are of processor time, so per core, which other tenants disturb least; `ratio` is the time of the better of
// `tiled` and `full` / ours, `cpu_ratio` the same of processor time, and `over plain` that of `plain`, each of
// neighbours in time. Medians.
//
//   bench_kernel_baselines [sequence = 4096] [heads = 8] [threads = 2] [repetitions = 5]
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "orrery/orrery.hpp"

#include "common/arguments.hpp"
#include "common/problem.hpp"
#include "common/statistics.hpp"

extern "C" {
void sgemm_(const char* transpose_a, const char* transpose_b, const int* m, const int* n, const int* k,
            const float* alpha, const float* a, const int* lda, const float* b, const int* ldb, const float* beta,
            float* c, const int* ldc);
void openblas_set_num_threads(int threads);
}

namespace {

using bench::clock_type;
using orrery::pass;
using kernel = orrery::flash<float>;
using shard = bench::shard<float>;

/// Row-major c[m x n] = alpha a[m x k] b[k x n] + beta c, where a and b may be given transposed. (Fortran sees the
/// transposes of all, and so the factors in the other order.)
void multiply(bool a_transposed, bool b_transposed, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
              const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
              std::int64_t ldc) {
  const auto number = [](std::int64_t x) { return static_cast<int>(x); };
  const int fm = number(n), fn = number(m), fk = number(k), fa = number(ldb), fb = number(lda), fc = number(ldc);
  sgemm_(b_transposed ? "T" : "N", a_transposed ? "T" : "N", &fm, &fn, &fk, &alpha, b, &fa, a, &fb, &beta, c, &fc);
}

using lanes16 = orrery::detail::simd<float, 64>;

/// The largest of a row, and the sum of 2^(row - largest), in place. Lengths are multiples of 16.
[[gnu::target_clones("default", "avx2", "avx512f")]] float largest_of(const float* row, std::int64_t count,
                                                                      float so_far) {
  lanes16::vector most = lanes16::vector{} + so_far;
  for (std::int64_t i = 0; i < count; i += 16) {
    const lanes16::vector x = *reinterpret_cast<const lanes16::in_memory*>(row + i);
    most = x > most ? x : most;
  }
  for (int i = 0; i < 16; ++i) so_far = std::max(so_far, most[i]);
  return so_far;
}
[[gnu::target_clones("default", "avx2", "avx512f")]] void subtract(float* row, std::int64_t count, float what) {
  for (std::int64_t i = 0; i < count; i += 16) *reinterpret_cast<lanes16::in_memory*>(row + i) -= what;
}
[[gnu::target_clones("default", "avx2", "avx512f")]] void scale_and_subtract(float* row, std::int64_t count,
                                                                             float scale, float what) {
  for (std::int64_t i = 0; i < count; i += 16) {
    lanes16::in_memory& x = *reinterpret_cast<lanes16::in_memory*>(row + i);
    x = x * scale - what;
  }
}
/// Gradients of probabilities become those of scores.
[[gnu::target_clones("default", "avx2", "avx512f")]] void score_gradients(const float* probabilities, float* grads,
                                                                          std::int64_t count, float delta,
                                                                          float scale) {
  for (std::int64_t i = 0; i < count; i += 16) {
    lanes16::in_memory& grad = *reinterpret_cast<lanes16::in_memory*>(grads + i);
    grad = *reinterpret_cast<const lanes16::in_memory*>(probabilities + i) * ((grad - delta) * scale);
  }
}
[[gnu::target_clones("default", "avx2", "avx512f")]] float sum_of(const float* row, std::int64_t count) {
  lanes16::vector sum{};
  for (std::int64_t i = 0; i < count; i += 16) sum += *reinterpret_cast<const lanes16::in_memory*>(row + i);
  float all = 0;
  for (int i = 0; i < 16; ++i) all += sum[i];
  return all;
}

/// Attention by BLAS in tiles of rows x keys of one head; with tiles as large as the sequence, the full score matrix.
struct by_blas {
  shard& problem;
  bool causal;
  bool plain;
  std::int64_t rows, keys;
  orrery::detail::flash_steps<float> steps = orrery::detail::flash_steps_for<float>(orrery::widest_instruction_set());
  std::vector<std::vector<float>> scores{}, grads{};

  by_blas(shard& of, bool masked, bool with_std_exp, std::int64_t tile_rows, std::int64_t tile_keys, int threads,
          bool with_grads)
      : problem{of}, causal{masked}, plain{with_std_exp}, rows{tile_rows}, keys{tile_keys} {
    const auto size = static_cast<std::size_t>(rows * keys);
    for (int t = 0; t < threads; ++t) {
      scores.emplace_back(size);
      grads.emplace_back(with_grads ? size : 0);
    }
  }

  void call(pass p, orrery::thread_team& team) {
    team.run(problem.q().heads, [&](std::int64_t head, int thread) {
      const auto t = static_cast<std::size_t>(thread);
      if (p == pass::forward) {
        forward(head, scores[t].data());
      } else {
        backward(head, scores[t].data(), grads[t].data());
      }
    });
  }

  [[nodiscard]] float scale() { return static_cast<float>(1 / std::sqrt(static_cast<double>(problem.q().dim))); }

  void powers(float* line, std::int64_t width) const {
    if (!plain) return steps.powers(line, width);
    for (std::int64_t i = 0; i < width; ++i) line[i] = std::exp2(line[i]);
  }

  void forward(std::int64_t head, float* s) {
    const auto q = problem.q(), k = problem.k(), v = problem.v(), out = problem.out();
    const std::int64_t n = q.sequence, d = q.dim, ld = q.sequence_stride;
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    std::vector<float> largest(static_cast<std::size_t>(rows)), sum(largest);
    for (std::int64_t row = 0; row < n; row += rows) {
      std::fill(largest.begin(), largest.end(), nothing);
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (std::int64_t key = 0; key < n; key += keys) {
        if (causal && key > row + rows - 1) break;
        multiply(false, true, rows, keys, d, scale() * orrery::detail::log2_e<float>, q.at(0, row, head), ld,
                 k.at(0, key, head), ld, 0, s, keys);
        for (std::int64_t i = 0; i < rows; ++i) {
          const auto at = static_cast<std::size_t>(i);
          float* const line = s + i * keys;
          // What is invisible from a whole vector on is neither looked at nor computed.
          const std::int64_t seen = causal ? std::clamp<std::int64_t>(row + i + 1 - key, 0, keys) : keys;
          const std::int64_t width = (seen + 15) / 16 * 16;
          std::fill(line + seen, line + width, nothing);
          std::fill(line + width, line + keys, 0.0f);
          if (seen == 0) continue;
          const float now = largest_of(line, width, largest[at]);
          const float factor = std::exp2(largest[at] - now);
          subtract(line, width, now);
          powers(line, width);
          sum[at] = sum[at] * factor + sum_of(line, width);
          largest[at] = now;
          if (key > 0 && factor != 1) {
            for (std::int64_t c = 0; c < d; ++c) out.at(0, row + i, head)[c] *= factor;
          }
        }
        multiply(false, false, rows, d, keys, 1, s, keys, v.at(0, key, head), ld, key > 0 ? 1.0f : 0.0f,
                 out.at(0, row, head), ld);
      }
      for (std::int64_t i = 0; i < rows; ++i) {
        const auto at = static_cast<std::size_t>(i);
        for (std::int64_t c = 0; c < d; ++c) out.at(0, row + i, head)[c] /= sum[at];
        *problem.lse().at(0, head, row + i) = orrery::detail::ln_2<float> * (largest[at] + std::log2(sum[at]));
      }
    }
  }

  void backward(std::int64_t head, float* s, float* ds) {
    const auto q = problem.q(), k = problem.k(), v = problem.v(), grad_out = problem.grad_out();
    const auto grad_q = problem.grad_q(), grad_k = problem.grad_k(), grad_v = problem.grad_v();
    const std::int64_t n = q.sequence, d = q.dim, ld = q.sequence_stride;
    std::vector<float> lse(static_cast<std::size_t>(n)), delta(lse);
    for (std::int64_t i = 0; i < n; ++i) {
      lse[static_cast<std::size_t>(i)] = *problem.lse().at(0, head, i) * orrery::detail::log2_e<float>;
      for (std::int64_t c = 0; c < d; ++c) {
        delta[static_cast<std::size_t>(i)] += problem.out().at(0, i, head)[c] * grad_out.at(0, i, head)[c];
      }
    }
    for (std::int64_t key = 0; key < n; key += keys) {
      bool first = true;
      for (std::int64_t row = causal ? key / rows * rows : 0; row < n; row += rows) {
        multiply(false, true, rows, keys, d, 1, q.at(0, row, head), ld, k.at(0, key, head), ld, 0, s, keys);
        multiply(false, true, rows, keys, d, 1, grad_out.at(0, row, head), ld, v.at(0, key, head), ld, 0, ds, keys);
        for (std::int64_t i = 0; i < rows; ++i) {
          const std::int64_t seen = causal ? std::clamp<std::int64_t>(row + i + 1 - key, 0, keys) : keys;
          const std::int64_t width = (seen + 15) / 16 * 16;
          const auto at = static_cast<std::size_t>(row + i);
          scale_and_subtract(s + i * keys, width, scale() * orrery::detail::log2_e<float>, lse[at]);
          powers(s + i * keys, width);
          score_gradients(s + i * keys, ds + i * keys, width, delta[at], scale());
          std::fill(s + i * keys + seen, s + (i + 1) * keys, 0.0f);
          std::fill(ds + i * keys + seen, ds + (i + 1) * keys, 0.0f);
        }
        const float more = first ? 0.0f : 1.0f;
        multiply(true, false, keys, d, rows, 1, s, keys, grad_out.at(0, row, head), ld, more, grad_v.at(0, key, head),
                 ld);
        multiply(true, false, keys, d, rows, 1, ds, keys, q.at(0, row, head), ld, more, grad_k.at(0, key, head), ld);
        multiply(false, false, rows, d, keys, 1, ds, keys, k.at(0, key, head), ld, key > 0 ? 1.0f : 0.0f,
                 grad_q.at(0, row, head), ld);
        first = false;
      }
    }
  }
};

template <class Mask>
void compare(const orrery::attention_shape& shape, pass p, orrery::thread_team& team, int repetitions) {
  constexpr bool causal = std::is_same_v<Mask, orrery::causal>;
  shard ours{shape, orrery::contiguous::shard(0, 1, shape.length)};
  shard theirs{ours};
  const std::int64_t n = shape.length;
  const std::int64_t tile = std::min<std::int64_t>(n, 256);
  by_blas tiled{theirs, causal, false, tile, tile, team.threads(), p != pass::forward};
  by_blas whole{theirs, causal, false, n, n, team.threads(), p != pass::forward};
  by_blas plain{theirs, causal, true, tile, tile, team.threads(), p != pass::forward};
  const auto flash = [&](pass which) { bench::call_kernel<kernel>(ours, which, Mask{}, {.team = &team}); };
  const auto error = [&] {
    const double worst = theirs.error_against(ours, p);
    if (worst < 1e-4) return;
    std::printf("results differ by %g\n", worst);
    std::exit(1);
  };
  flash(pass::forward);
  flash(p);
  tiled.call(pass::forward, team);
  tiled.call(p, team);
  error();
  whole.call(p, team);
  error();
  plain.call(p, team);
  error();

  std::vector<double> cpu_times[4], ratios[3], cpu_ratios[3];
  for (int i = 0; i < repetitions; ++i) {
    double seconds[4], cpu[4];
    for (int which = 0; which < 4; ++which) {
      const auto begin = clock_type::now();
      const std::clock_t cpu_begin = std::clock();
      if (which == 0) flash(p);
      if (which == 1) tiled.call(p, team);
      if (which == 2) whole.call(p, team);
      if (which == 3) plain.call(p, team);
      seconds[which] = bench::seconds_between(begin, clock_type::now());
      cpu[which] = static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC;
      cpu_times[which].push_back(cpu[which]);
    }
    for (int which = 0; which < 3; ++which) {
      ratios[which].push_back(seconds[which + 1] / seconds[0]);
      cpu_ratios[which].push_back(cpu[which + 1] / cpu[0]);
    }
  }
  const double flop = bench::flop_of(shape, causal, p) * 1e-9;
  const auto better = [](const std::vector<double>* of) {
    return std::min(bench::median(of[0]), bench::median(of[1]));
  };
  std::printf("| %-8s | %3lld | %-6s | %7.1f | %7.1f | %7.1f | %7.1f | %5.2f | %9.2f | %10.2f |\n",
              p == pass::forward ? "forward" : "backward", static_cast<long long>(shape.head_dim),
              causal ? "causal" : "full", flop / bench::median(cpu_times[0]), flop / bench::median(cpu_times[1]),
              flop / bench::median(cpu_times[2]), flop / bench::median(cpu_times[3]), better(ratios),
              better(cpu_ratios), bench::median(cpu_ratios[2]));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  bench::arguments given{argc, argv,
                         "bench_kernel_baselines [sequence = 4096] [heads = 8] [threads = 2] [repetitions = 5]"};
  orrery::attention_shape shape;
  shape.length = given.number("sequence", 4096);
  shape.query_heads = given.number("heads", 8);
  const int threads = static_cast<int>(given.number("threads", 2, 1, 1024));
  const int repetitions = static_cast<int>(given.number("repetitions", 5, 1, 1'000'000));
  given.finish();
  if (shape.length % 16 != 0 || (shape.length > 256 && shape.length % 256 != 0))
    given.refuse("sequence is " + std::to_string(shape.length) + ", expected a multiple of 256, or of 16 below");
  openblas_set_num_threads(1);
  orrery::thread_team team{threads};
  std::printf("float, batch 1, sequence %lld, heads %lld, %d threads; GF/s per core\n\n",
              static_cast<long long>(shape.length), static_cast<long long>(shape.query_heads), threads);
  std::printf("| pass     | dim | mask   | flash   | tiled   | full    | plain   | ratio | cpu_ratio | over plain |\n");
  std::printf("| -------- | --- | ------ | ------- | ------- | ------- | ------- | ----- | --------- | ---------- |\n");
  for (const pass p : {pass::forward, pass::circulate_keys}) {
    for (const std::int64_t dim : {64, 128}) {
      shape.head_dim = dim;
      compare<orrery::full>(shape, p, team, repetitions);
      compare<orrery::causal>(shape, p, team, repetitions);
    }
  }
}
