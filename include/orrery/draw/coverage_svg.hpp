// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/detail/svg_number.hpp"
#include "orrery/draw/detail/svg_text.hpp"
#include "orrery/draw/picture_options.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// Which rank computes which pair, and when: see `coverage_svg`.
class coverage_drawing {
 public:
  coverage_drawing(const list<program>& programs, const picture_options& options)
      : world_{programs.size()}, chunks_{programs.empty() ? 1 : programs[0].chunks}, options_{options} {
    const int slices = programs.empty() ? 1 : programs[0].slices;
    if (options.slice < 0 || options.slice >= slices) {
      throw std::invalid_argument{"orrery: coverage_svg: slice is " + std::to_string(options.slice) +
                                  ", expected less than " + std::to_string(slices) + ", the slices of the heads"};
    }
    has_slices_ = slices > 1;
    pairs_.resize(std::size_t(blocks()) * std::size_t(blocks()));
    for (const program& p : programs) {
      for (int s = 0; s < p.steps.size(); ++s) {
        const tile& t = p.steps[s].tile;
        if (t.empty() || p.queries_of(t)[0].block.slice != options.slice) continue;
        for (const held_block& q : p.queries_of(t)) {
          for (const held_block& k : p.keys_of(t)) at(q.block, k.block) = {p.rank, s};
        }
      }
    }
  }

  [[nodiscard]] std::string text() {
    const int n = blocks();
    const double cell = n <= 8 ? 44 : n <= 16 ? 30 : n <= 32 ? 20 : n <= 64 ? 12 : 6;
    const double size = cell * n, right = left + size, bottom = top + size;
    const double width = right + 20 < 420 ? 420 : right + 20;
    const char* const title = "Which rank computes which pair";
    svg_.text(12, 18, "title", options_.title.empty() ? title : options_.title);
    svg_.text(12, 36, "note",
              std::string{cell >= 20 ? "colour: rank; number: step" : "colour: rank"} +
                  (has_slices_ ? "; slice " + std::to_string(options_.slice) + " of the heads" : std::string{}));
    svg_.text(left + size / 2, top - 24, "column", chunks_ > 1 ? "key chunk" : "key shard");
    svg_.text(left - 8, top - 8, "row", chunks_ > 1 ? "query chunk" : "query shard");
    svg_.box(left, top, size, size, "class=\"ground\"");
    for (int i = 0; i < n; i += label_every(cell, n > 99 ? 26 : 19)) {
      svg_.text(left + cell * (i + 0.5), top - 8, "column", std::to_string(i));
    }
    for (int i = 0; i < n; i += label_every(cell, 14)) {
      svg_.text(left - 8, top + cell * (i + 0.5) + 4, "row", std::to_string(i));
    }
    for (int q = 0; q < n; ++q) {
      for (int k = 0; k < n; ++k) {
        const who one = pairs_[std::size_t(q) * std::size_t(n) + std::size_t(k)];
        if (one.rank < 0) continue;
        const double x = left + cell * k, y = top + cell * q;
        svg_.box(x, y, cell, cell, "class=\"cell\" fill=\"" + colour(one.rank) + "\"",
                 "query " + std::to_string(q) + ", key " + std::to_string(k) + ": rank " + std::to_string(one.rank) +
                     ", step " + std::to_string(one.step));
        if (cell >= 20) svg_.text(x + cell / 2, y + cell / 2 + 4, "in", std::to_string(one.step));
      }
    }
    return svg_.document(width, legend(bottom + 16, width) + 12, options_.title.empty() ? title : options_.title);
  }

 private:
  static constexpr double left = 92, top = 84;

  struct who {
    int rank = -1;
    int step = 0;
  };
  [[nodiscard]] int blocks() const noexcept { return world_ * chunks_; }
  [[nodiscard]] who& at(const block& q, const block& k) {
    return pairs_[std::size_t(q.shard * chunks_ + q.chunk) * std::size_t(blocks()) +
                  std::size_t(k.shard * chunks_ + k.chunk)];
  }
  /// Neighbours differ in hue and, every other one, in lightness. White is readable on all.
  [[nodiscard]] std::string colour(int rank) const {
    const double hue = world_ > 0 ? 360.0 * rank / world_ : 0;
    return "hsl(" + svg_number(hue + 205) + "," + (rank % 2 == 0 ? "52%,33%" : "44%,41%") + ")";
  }
  /// Returns its bottom.
  double legend(double y, double width) {
    const double step = 34;
    double x = left;
    svg_.text(left - 8, y + 10, "row", "rank");
    const int shown = world_ <= 64 ? 1 : world_ / 32;
    for (int rank = 0; rank < world_; rank += shown) {
      if (x + step > width) {
        x = left;
        y += 20;
      }
      svg_.box(x, y, 12, 12, "fill=\"" + colour(rank) + "\"");
      svg_.text(x + 15, y + 10, "note", std::to_string(rank));
      x += step;
    }
    return y + 12;
  }

  int world_;
  int chunks_;
  const picture_options& options_;
  bool has_slices_ = false;
  std::vector<who> pairs_;
  svg_text svg_;
};

}  // namespace orrery::detail

namespace orrery {

/// Draws which rank computes which pair of a query shard and a key shard, and in which step, as an SVG file: a row for
/// each query shard, a column for each key shard. Colours are ranks'; numbers are steps', written for up to 32 shards,
/// and under the mouse for more. Pairs that are not computed are empty. Of heads that are cut into slices, draws
/// `options.slice`.
///
///     std::ofstream{"pairs.svg"} << orrery::coverage_svg(orrery::programs_of(orrery::concentric<2, 2>{}, 16));
///
/// Costs a line of the file for each pair. Throws `std::invalid_argument` if there is no such slice.
[[nodiscard]] inline std::string coverage_svg(const schedule::list<schedule::program>& programs,
                                              const picture_options& options = {}) {
  return detail::coverage_drawing{programs, options}.text();
}

}  // namespace orrery
