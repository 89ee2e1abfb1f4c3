// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// A picture of which schedule wins, over tokens of a rank and ranks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "orrery/detail/svg_number.hpp"
#include "orrery/draw/detail/svg_text.hpp"
#include "orrery/tune/estimate_schedules.hpp"

class wins_map {
 public:
  explicit wins_map(std::string title) : title_{std::move(title)} {}

  /// `found` is sorted, the fastest first.
  void add(std::int64_t ranks, std::int64_t tokens, const std::vector<orrery::schedule_estimate>& found) {
    const auto place = [](std::vector<std::int64_t>& all, std::int64_t one) {
      const auto at = std::find(all.begin(), all.end(), one);
      if (at != all.end()) return static_cast<std::size_t>(at - all.begin());
      all.push_back(one);
      return all.size() - 1;
    };
    cell made{place(ranks_, ranks), place(tokens_, tokens), "", 0, 0, 0};
    if (!found.empty()) {
      made.name = found[0].topology.name();
      made.seconds = found[0].seconds;
      made.ties = static_cast<std::size_t>(std::count_if(
          found.begin(), found.end(), [&](const auto& one) { return one.seconds <= 1.03 * found[0].seconds; }));
      for (const auto& one : found) {
        if (one.topology.name() == "ring") made.ring = one.seconds / found[0].seconds;
      }
    }
    cells_.push_back(std::move(made));
  }

  [[nodiscard]] std::string svg() const {
    using orrery::detail::svg_text;
    constexpr double left = 70, top = 92, width = 108, height = 46;
    svg_text out;
    const double right = left + width * static_cast<double>(tokens_.size());
    const double bottom = top + height * static_cast<double>(ranks_.size());
    out.text(12, 20, "title", title_);
    out.text(12, 40, "note",
             "the fastest schedule by estimate; below it, how many times as long a ring takes, and how many "
             "schedules are within 3 %");
    out.text((left + right) / 2, top - 28, "column", "tokens of a rank");
    out.text(left - 8, top - 10, "row", "ranks");
    for (std::size_t t = 0; t < tokens_.size(); ++t) {
      out.text(left + width * (static_cast<double>(t) + 0.5), top - 10, "column", std::to_string(tokens_[t]));
    }
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      out.text(left - 8, top + height * (static_cast<double>(r) + 0.5) + 4, "row", std::to_string(ranks_[r]));
    }
    for (const cell& one : cells_) {
      const double x = left + width * static_cast<double>(one.tokens),
                   y = top + height * static_cast<double>(one.ranks);
      out.box(x, y, width, height, "class=\"cell\" fill=\"" + colour(one.name) + "\"",
              one.name.empty()
                  ? "nothing fits in memory"
                  : one.name + ", " + orrery::detail::seconds_text(one.seconds) + " a forward and backward");
      if (one.name.empty()) continue;
      const bool is_placed = one.name.rfind("placed<", 0) == 0;
      const std::string name = is_placed ? one.name.substr(7, one.name.find(">,") - 6) + "*" : one.name;
      out.text(x + width / 2, y + 19, "in", name);
      out.text(x + width / 2, y + 35, "in", ratio(one.ring) + ", " + std::to_string(one.ties));
    }
    double x = left;
    for (const auto& [family, fill] : families) {
      out.box(x, bottom + 16, 12, 12, std::string{"fill=\""} + fill + "\"");
      out.text(x + 17, bottom + 26, "note", family);
      x += 124;
    }
    out.text(left, bottom + 48, "note", "*: placed, rings in nodes");
    return out.document(right + 20, bottom + 60, title_);
  }

 private:
  struct cell {
    std::size_t ranks, tokens;
    std::string name;
    double seconds;
    std::size_t ties;
    double ring;
  };
  static constexpr std::pair<const char*, const char*> families[] = {
      {"concentric", "#2a6aa0"},  {"wallfacer", "#8a4fae"}, {"usp, all_to_all", "#2b7d47"}, {"ulysses", "#7a6a1c"},
      {"double_ring", "#a85a12"}, {"ring", "#59636e"},      {"all_gather", "#a03a52"}};

  [[nodiscard]] static std::string ratio(double value) {
    return value <= 0 ? "no ring" : orrery::detail::svg_number(std::round(value * 100) / 100) + " x";
  }
  [[nodiscard]] static std::string colour(const std::string& name) {
    if (name.empty()) return "#8c959f";
    const std::string inner = name.rfind("placed<", 0) == 0 ? name.substr(7) : name;
    for (const auto& [family, fill] : families) {
      if (inner.rfind(std::string{family}.substr(0, std::string{family}.find(',')), 0) == 0) return fill;
    }
    return "#2b7d47";
  }

  std::string title_;
  std::vector<std::int64_t> ranks_, tokens_;
  std::vector<cell> cells_;
};
