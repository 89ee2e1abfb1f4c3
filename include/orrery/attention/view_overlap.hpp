// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

namespace orrery::detail {

/// The bytes of a view: a run of `run` bytes at `begin` + i * stride[0] + j * stride[1] + k * stride[2], for 0 <= i <=
/// last[0], and so on. No stride is negative. Empty if `run` is 0.
struct footprint {
  std::uint64_t begin = 0;
  std::int64_t run = 0;
  std::int64_t last[3] = {};
  std::int64_t stride[3] = {};
  std::int64_t extent = 0;  ///< from `begin` to the end of the last run

  /// Larger extents are larger than any address space.
  static constexpr std::int64_t most_extent = std::int64_t{1} << 60;

  /// The `extent` is -1 if it would be larger than `most_extent`.
  [[nodiscard]] static constexpr footprint of(std::uint64_t begin, std::int64_t run, const std::int64_t (&counts)[3],
                                              const std::int64_t (&strides)[3]) noexcept {
    footprint bytes;
    if (run < 1 || counts[0] < 1 || counts[1] < 1 || counts[2] < 1) return bytes;
    bytes.begin = begin;
    bytes.run = bytes.extent = run;
    bool fits = run <= most_extent;
    for (int i = 0; i < 3; ++i) {
      if (counts[i] == 1) continue;  // its stride says nothing
      bytes.last[i] = counts[i] - 1;
      bytes.stride[i] = strides[i];
      fits = fits && strides[i] <= most_extent / bytes.last[i];
      if (fits) bytes.extent += bytes.last[i] * strides[i];
      fits = fits && bytes.extent <= most_extent;
    }
    if (!fits) bytes.extent = -1;
    return bytes;
  }
};

enum class overlap : std::uint8_t { no, yes, undecided };

/// Decides whether a sum of multiples of strides can come into an interval: exactly, but for more than two strides that
/// do not nest and would need a long search.
///
/// Strides are tried from the largest down. Where each is larger than all that the smaller ones reach, as in every
/// dense tensor, slice or transposition of one, at most two multiples of each can lead into the interval; where the
/// smaller ones leave no gaps, the bounds decide; and of two strides, Euclid's algorithm. Allocates nothing; takes tens
/// of nanoseconds for views that nest, and no more than 4096 steps.
class stride_sums {
 public:
  /// Multiples of `stride` from `least` to `most` times. Strides are positive.
  constexpr void add(std::int64_t stride, std::int64_t least, std::int64_t most) noexcept {
    for (int i = 0; i < count_; ++i) {
      if (terms_[i].stride != stride) continue;
      terms_[i].least += least;
      terms_[i].most += most;
      return;
    }
    int at = count_++;
    for (; at > 0 && terms_[at - 1].stride < stride; --at) terms_[at] = terms_[at - 1];
    terms_[at] = {stride, least, most};
  }

  /// True if a sum is in [first, last].
  [[nodiscard]] constexpr overlap meet(std::int64_t first, std::int64_t last) noexcept {
    std::int64_t window = last - first + 1;
    bool dense = true;
    for (int i = count_ - 1; i >= 0; --i) {
      const term& one = terms_[i];
      dense = dense && one.stride <= window;
      window += one.stride * (one.most - one.least);
      from_[i].dense = dense;
      from_[i].least = from_[i + 1].least + one.stride * one.least;
      from_[i].most = from_[i + 1].most + one.stride * one.most;
      from_[i].divisor = common_divisor(one.stride, from_[i + 1].divisor);
    }
    steps_ = 0;
    const bool met = meet_from(0, first, last);
    return steps_ > most_steps ? overlap::undecided : met ? overlap::yes : overlap::no;
  }

 private:
  static constexpr int most_terms = 6;
  static constexpr int most_steps = 4096;

  struct term {
    std::int64_t stride = 0;
    std::int64_t least = 0;
    std::int64_t most = 0;
  };
  /// The sums of a term and all that come after it.
  struct sums {
    std::int64_t least = 0;
    std::int64_t most = 0;
    std::int64_t divisor = 0;  // of all of them
    bool dense = true;         // no gap among them is as wide as the interval
  };

  constexpr bool meet_from(int i, std::int64_t first, std::int64_t last) noexcept {
    if (last < from_[i].least || first > from_[i].most) return false;
    if (from_[i].dense) return true;
    if (floor_of(last, from_[i].divisor) * from_[i].divisor < first) return false;
    const term& one = terms_[i];
    std::int64_t times = -floor_of(from_[i + 1].most - first, one.stride);
    std::int64_t end = floor_of(last - from_[i + 1].least, one.stride);
    times = times < one.least ? one.least : times;
    end = end > one.most ? one.most : end;
    if (i == count_ - 2 && times <= end)
      return meet_last_two(terms_[i + 1].stride, one.stride, first, last, times, end);
    for (; times <= end; ++times) {
      if (++steps_ > most_steps) return true;
      if (meet_from(i + 1, first - times * one.stride, last - times * one.stride)) return true;
    }
    return false;
  }
  /// The last two terms: returns true if there is a multiple of `finer` in [first - t * coarser, last - t * coarser]
  /// for a t in [least, most]. All these intervals reach into what multiples of `finer` are allowed; the multiple at
  /// its edge is in those that also reach out of it.
  constexpr bool meet_last_two(std::int64_t finer, std::int64_t coarser, std::int64_t first, std::int64_t last,
                               std::int64_t least, std::int64_t most) noexcept {
    const std::int64_t wide = last - first;  // less than `finer`, which is not dense
    const std::int64_t end = last - least * coarser;
    const std::int64_t rest = end - floor_of(end, finer) * finer;
    if (rest <= wide) return true;
    const std::int64_t found = least_multiple(finer - coarser % finer, finer, finer - rest, finer - rest + wide);
    return found >= 0 && found <= most - least;
  }
  /// The least x > 0 with a * x mod m in [low, high], where 0 < low <= high < m and 0 <= a <= m; -1 if there is none.
  constexpr std::int64_t least_multiple(std::int64_t a, std::int64_t m, std::int64_t low, std::int64_t high) noexcept {
    if (low == 0) return 0;
    a %= m;
    if (a == 0) return -1;
    if (a > m / 2) return least_multiple(m - a, m, m - high, m - low);
    const std::int64_t times = (low + a - 1) / a;
    if (times * a <= high) return times;
    // No multiple of a is in [low, high]: m must be subtracted a number of times.
    const std::int64_t rounds = least_multiple(a - m % a, a, low % a, high % a);
    if (rounds < 0) return -1;
    std::int64_t sum = 0;
    if (__builtin_mul_overflow(m, rounds, &sum) || __builtin_add_overflow(sum, low + a - 1, &sum)) {
      steps_ = most_steps + 1;  // undecided
      return 0;
    }
    return sum / a;
  }
  static constexpr std::int64_t floor_of(std::int64_t a, std::int64_t b) noexcept {
    return a / b - (a % b < 0 ? 1 : 0);
  }
  static constexpr std::int64_t common_divisor(std::int64_t a, std::int64_t b) noexcept {
    while (b != 0) {
      const std::int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  }

  term terms_[most_terms];
  sums from_[most_terms + 1];
  int count_ = 0;
  int steps_ = 0;
};

/// Returns `yes` if two views, of known extents, have a byte in common.
[[nodiscard]] constexpr overlap overlap_of(const footprint& a, const footprint& b) noexcept {
  if (a.run == 0 || b.run == 0) return overlap::no;
  if (a.begin >= b.begin + static_cast<std::uint64_t>(b.extent)) return overlap::no;
  if (b.begin >= a.begin + static_cast<std::uint64_t>(a.extent)) return overlap::no;
  stride_sums distances;  // from a run of b to a run of a, without that of their begins
  for (int i = 0; i < 3; ++i) {
    if (a.stride[i] > 0) distances.add(a.stride[i], 0, a.last[i]);
    if (b.stride[i] > 0) distances.add(b.stride[i], -b.last[i], 0);
  }
  const auto begins = static_cast<std::int64_t>(a.begin - b.begin);
  return distances.meet(1 - a.run - begins, b.run - 1 - begins);
}

/// Returns `yes` if two elements of a view, of a known extent, with different indices have a byte in common.
[[nodiscard]] constexpr overlap overlap_within(const footprint& a) noexcept {
  if (a.run == 0) return overlap::no;
  for (int i = 0; i < 3; ++i) {
    if (a.last[i] > 0 && a.stride[i] == 0) return overlap::yes;
  }
  // Two indices that differ in dimension i, and not in those before it.
  for (int i = 0; i < 3; ++i) {
    if (a.last[i] == 0) continue;
    stride_sums distances;
    distances.add(a.stride[i], 1, a.last[i]);
    for (int j = i + 1; j < 3; ++j) {
      if (a.last[j] > 0) distances.add(a.stride[j], -a.last[j], a.last[j]);
    }
    if (const overlap found = distances.meet(1 - a.run, a.run - 1); found != overlap::no) return found;
  }
  return overlap::no;
}

}  // namespace orrery::detail
