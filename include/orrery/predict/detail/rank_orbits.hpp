// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "orrery/predict/machine.hpp"
#include "orrery/schedule/list.hpp"

namespace orrery::detail {

/// Which ranks do the same at the same time: the orbits of the translations of a grid of ranks that map groups of the
/// machine's levels onto groups. A simulation needs one rank of each.
///
/// Ranks are a grid: rank = x + X * (y + Y * z). A schedule whose programs are alike but for the coordinates (see
/// `topology::symmetric_grid`) looks the same from two ranks when a translation takes one to the other. On nodes of N
/// ranks, a translation takes nodes to nodes if the coordinate's cycle lies inside a node, or if it moves ranks by a
/// multiple of N; of a coordinate whose cycle is none of these, no translation is used.
///
/// All orbits have equally many ranks. The representative of an orbit is its first rank.
class rank_orbits {
 public:
  rank_orbits() = default;
  /// Every rank alone.
  explicit rank_orbits(int world) : world_{world}, count_{world} {}
  /// Of a grid with these extents, the innermost first. Every rank alone if they are not a grid of the world.
  rank_orbits(int world, const list<int>& extents, const machine& m) : rank_orbits{world} {
    std::int64_t ranks = extents.empty() ? 0 : 1;
    for (const int extent : extents) ranks *= extent < 1 || ranks > world ? 0 : extent;
    if (ranks != world) return;
    int stride = 1, count = 1;
    for (const int extent : extents) {
      coordinate one{stride, extent, step_of(stride, extent, world, m), count};
      stride *= extent;
      if (extent == 1) continue;
      if (dimensions_ == coordinates_.size()) return;  // more than anybody nests: every rank alone
      coordinates_[dimensions_++] = one;
      count *= one.step;
    }
    is_folded_ = count < world;
    count_ = count;
  }

  [[nodiscard]] int world() const noexcept { return world_; }
  /// Of orbits.
  [[nodiscard]] int count() const noexcept { return count_; }
  /// Ranks of each orbit.
  [[nodiscard]] int size() const noexcept { return count_ == 0 ? 0 : world_ / count_; }
  /// True if some orbit has more ranks than one.
  [[nodiscard]] bool is_folded() const noexcept { return is_folded_; }

  [[nodiscard]] int orbit_of(int rank) const noexcept {
    if (!is_folded_) return rank;
    int orbit = 0;
    for (std::size_t d = 0; d < dimensions_; ++d)
      orbit += place(d, rank) % coordinates_[d].step * coordinates_[d].count;
    return orbit;
  }
  [[nodiscard]] int representative(int orbit) const noexcept {
    if (!is_folded_) return orbit;
    int rank = 0;
    for (std::size_t d = 0; d < dimensions_; ++d) {
      rank += orbit / coordinates_[d].count % coordinates_[d].step * coordinates_[d].stride;
    }
    return rank;
  }
  /// Where `rank` comes to be when `moved` is moved to the representative of its orbit.
  [[nodiscard]] int moved_with(int moved, int rank) const noexcept { return translated(moved, rank, -1); }
  /// Where `rank` comes to be when the representative of `to`'s orbit is moved to `to`.
  [[nodiscard]] int moved_back(int to, int rank) const noexcept { return translated(to, rank, +1); }

 private:
  /// One coordinate: translations by multiples of `step` are used.
  struct coordinate {
    int stride = 1;
    int extent = 1;
    int step = 1;
    int count = 1;  ///< of orbits in the coordinates before
  };

  [[nodiscard]] static int step_of(int stride, int extent, int world, const machine& m) noexcept {
    const std::int64_t cycle = std::int64_t{stride} * extent;
    std::int64_t step = 1;
    for (std::size_t l = 0; l < m.levels.size(); ++l) {
      const std::int64_t group = m.ranks_of_level(static_cast<int>(l));
      if (group >= world || group % cycle == 0 || stride % group == 0) continue;
      if (group % stride != 0 || cycle % group != 0) return extent;
      step = std::lcm(step, group / stride);
    }
    return static_cast<int>(step);
  }
  [[nodiscard]] int place(std::size_t d, int rank) const noexcept {
    return rank / coordinates_[d].stride % coordinates_[d].extent;
  }
  [[nodiscard]] int translated(int from, int rank, int sign) const noexcept {
    if (!is_folded_) return rank;
    int to = 0;
    for (std::size_t d = 0; d < dimensions_; ++d) {
      const coordinate& c = coordinates_[d];
      const int distance = place(d, from) / c.step * c.step;
      to += (place(d, rank) + c.extent + sign * distance) % c.extent * c.stride;
    }
    return to;
  }

  int world_ = 0;
  int count_ = 0;
  bool is_folded_ = false;
  std::size_t dimensions_ = 0;
  std::array<coordinate, 40> coordinates_{};
};

}  // namespace orrery::detail
