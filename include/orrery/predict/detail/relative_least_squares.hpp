// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

namespace orrery::detail {

/// Fits seconds as sums of a few terms with non-negative factors, so that the mean square of the relative errors is
/// least: a sample of 10 us counts as much as one of 1 s.
class relative_least_squares {
 public:
  static constexpr std::size_t most_factors = 4;
  using factors = std::array<double, most_factors>;

  struct solution {
    factors values{};
    double error = 1;  ///< mean square of the samples' errors; 1 if there is no sample
  };

  /// A sample: seconds, above 0, of which `known` are explained already, and what each factor is multiplied with. Its
  /// error is (known + sum of terms) / seconds - 1.
  void add(double seconds, double known, const factors& with) {
    row one{{}, 1 - known / seconds};
    for (std::size_t i = 0; i < most_factors; ++i) one.terms[i] = with[i] / seconds;
    rows_.push_back(one);
  }

  /// The best factors: of each set of factors that are not 0, the best ones, if none of them is negative. Factors that
  /// the samples do not tell apart are not used together.
  [[nodiscard]] solution solve() const {
    solution best;
    if (!rows_.empty()) best.error = error_of({});
    factors scale{};
    for (std::size_t i = 0; i < most_factors; ++i) {
      for (const row& one : rows_) scale[i] += one.terms[i] * one.terms[i];
      scale[i] = scale[i] > 0 ? 1 / std::sqrt(scale[i]) : 0;
    }
    for (unsigned set = 1; set < 1u << most_factors; ++set) {
      solution one;
      if (solve(set, scale, one) && one.error < best.error) best = one;
    }
    return best;
  }

 private:
  struct row {
    factors terms;
    double sum;  ///< that they should have
  };
  using matrix = std::array<std::array<double, most_factors + 1>, most_factors>;

  [[nodiscard]] bool solve(unsigned set, const factors& scale, solution& to) const {
    std::array<std::size_t, most_factors> of{};
    std::size_t count = 0;
    for (std::size_t i = 0; i < most_factors; ++i) {
      if ((set >> i & 1u) == 0) continue;
      if (scale[i] == 0) return false;
      of[count++] = i;
    }
    if (count > rows_.size()) return false;
    matrix m{};  // the normal equations, and their right sides
    for (const row& one : rows_) {
      for (std::size_t i = 0; i < count; ++i) {
        const double a = one.terms[of[i]] * scale[of[i]];
        for (std::size_t j = 0; j < count; ++j) m[i][j] += a * one.terms[of[j]] * scale[of[j]];
        m[i][count] += a * one.sum;
      }
    }
    if (!eliminate(m, count)) return false;
    for (std::size_t i = 0; i < count; ++i) {
      if (!(m[i][count] >= 0)) return false;
      to.values[of[i]] = m[i][count] * scale[of[i]];
    }
    to.error = error_of(to.values);
    return true;
  }

  [[nodiscard]] double error_of(const factors& values) const noexcept {
    double sum = 0;
    for (const row& one : rows_) {
      double error = -one.sum;
      for (std::size_t i = 0; i < most_factors; ++i) error += one.terms[i] * values[i];
      sum += error * error;
    }
    return sum / static_cast<double>(rows_.size());
  }

  /// Gauss and Jordan's, with pivots. Returns false if the equations are not independent.
  [[nodiscard]] static bool eliminate(matrix& m, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      std::size_t pivot = i;
      for (std::size_t j = i + 1; j < count; ++j) {
        if (std::fabs(m[j][i]) > std::fabs(m[pivot][i])) pivot = j;
      }
      if (!(std::fabs(m[pivot][i]) > 1e-12)) return false;
      std::swap(m[i], m[pivot]);
      for (std::size_t j = 0; j < count; ++j) {
        if (j == i) continue;
        const double times = m[j][i] / m[i][i];
        for (std::size_t k = i; k <= count; ++k) m[j][k] -= times * m[i][k];
      }
      for (std::size_t k = count + 1; k-- > i;) m[i][k] /= m[i][i];
    }
    return true;
  }

  std::vector<row> rows_;
};

/// The least value of a function of two non-negative numbers, searched from a grid on, and where it is. For functions
/// that are cheap: it is called some thousand times.
[[nodiscard]] inline std::array<double, 2> least_of(const std::function<double(double, double)>& f, double most) {
  std::array<double, 2> best{};
  double least = (std::numeric_limits<double>::infinity)();
  const auto try_at = [&](double x, double y) {
    x = x < 0 ? 0 : x > most ? most : x;
    y = y < 0 ? 0 : y > most ? most : y;
    const double value = f(x, y);
    if (!(value < least)) return false;
    least = value;
    best = {x, y};
    return true;
  };
  const double grid[] = {0, 8, 32, 128, 512, 2048};
  for (const double x : grid) {
    for (const double y : grid) (void)try_at(x, y);
  }
  constexpr int most_calls = 20000;
  double step = 64;
  for (int calls = 0; step > 1e-7 && calls < most_calls;) {
    bool moved = false;
    for (const double dx : {-1.0, 0.0, 1.0}) {
      for (const double dy : {-1.0, 0.0, 1.0}) {
        if (dx == 0 && dy == 0) continue;
        const std::array<double, 2> from = best;
        moved = try_at(from[0] + dx * step, from[1] + dy * step) || moved;
        ++calls;
      }
    }
    step = moved ? step * 1.5 : step / 2;
  }
  return best;
}

}  // namespace orrery::detail
