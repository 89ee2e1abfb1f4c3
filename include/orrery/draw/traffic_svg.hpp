// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/detail/svg_number.hpp"
#include "orrery/detail/unit_text.hpp"
#include "orrery/draw/detail/svg_text.hpp"
#include "orrery/draw/picture_options.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// What each rank sends to each other: see `traffic_svg`.
class traffic_drawing {
 public:
  traffic_drawing(int world, const picture_options& options)
      : world_{world}, options_{options}, sent_(std::size_t(world) * std::size_t(world)) {
    if (options.ranks_per_node < 1) {
      throw std::invalid_argument{"orrery: traffic_svg: ranks_per_node is " + std::to_string(options.ranks_per_node) +
                                  ", expected at least 1"};
    }
  }
  void add(int from, int to, double bytes) {
    amount& one = sent_[std::size_t(from) * std::size_t(world_) + std::size_t(to)];
    one.bytes += bytes;
    ++one.messages;
  }

  [[nodiscard]] std::string text() {
    const double cell = world_ <= 8 ? 56 : world_ <= 16 ? 34 : world_ <= 32 ? 18 : world_ <= 64 ? 11 : 6;
    const double size = cell * world_, right = left + size, bottom = top + size;
    const double width = right + 20 < 420 ? 420 : right + 20;
    double most = 0, all = 0, between_nodes = 0;
    for (int from = 0; from < world_; ++from) {
      for (int to = 0; to < world_; ++to) {
        const double bytes = of(from, to).bytes;
        most = bytes > most ? bytes : most;
        all += bytes;
        if (from / options_.ranks_per_node != to / options_.ranks_per_node) between_nodes += bytes;
      }
    }
    svg_.text(12, 18, "title", options_.title.empty() ? "Who sends to whom" : options_.title);
    svg_.text(12, 36, "note",
              "sent in all: " + bytes_text(all) +
                  (options_.ranks_per_node > 1 ? ", between nodes: " + bytes_text(between_nodes) : std::string{}));
    svg_.text(left + size / 2, top - 24, "column", "to rank");
    svg_.text(left - 8, top - 8, "row", "from rank");
    svg_.box(left, top, size, size, "class=\"ground\"");
    const int every = label_every(cell, world_ > 99 ? 26 : 19);
    for (int rank = 0; rank < world_; rank += every) {
      svg_.text(left + cell * (rank + 0.5), top - 8, "column", std::to_string(rank));
    }
    for (int rank = 0; rank < world_; rank += label_every(cell, 14)) {
      svg_.text(left - 8, top + cell * (rank + 0.5) + 4, "row", std::to_string(rank));
    }
    for (int from = 0; from < world_; ++from) {
      for (int to = 0; to < world_; ++to) {
        const amount& one = of(from, to);
        if (one.messages == 0) continue;
        const double x = left + cell * to, y = top + cell * from;
        // White numbers are on what is dark enough for them; nobody sends nothing.
        const double strength = most > 0 ? 0.25 + 0.75 * one.bytes / most : 0.25;
        svg_.box(x, y, cell, cell, "class=\"cell sent\" fill-opacity=\"" + svg_number(strength) + "\"",
                 "rank " + std::to_string(from) + " to rank " + std::to_string(to) + ": " + bytes_text(one.bytes) +
                     " in " + std::to_string(one.messages) + (one.messages == 1 ? " message" : " messages"));
        if (cell >= 50)
          svg_.text(x + cell / 2, y + cell / 2 + 4, strength > 0.8 ? "in" : "column", bytes_text(one.bytes));
      }
    }
    for (int rank = 0; rank <= world_; ++rank) {
      if (options_.ranks_per_node == 1 || (rank % options_.ranks_per_node != 0 && rank != world_)) continue;
      svg_.line(left + cell * rank, top, left + cell * rank, bottom, "node");
      svg_.line(left, top + cell * rank, right, top + cell * rank, "node");
    }
    // The scale.
    for (int i = 0; i <= 4; ++i) {
      svg_.box(left + 24 * i, bottom + 14, 24, 12,
               "class=\"cell sent\" fill-opacity=\"" + svg_number(0.25 + 0.75 * i / 4) + "\"");
    }
    svg_.text(left + 128, bottom + 24, "note", "little to " + bytes_text(most));
    if (options_.ranks_per_node > 1) {
      svg_.text(left, bottom + 44, "note",
                "lines: borders of nodes of " + std::to_string(options_.ranks_per_node) + " ranks");
    }
    return svg_.document(width, bottom + 54, options_.title.empty() ? "Who sends to whom" : options_.title);
  }

 private:
  static constexpr double left = 74, top = 84;

  struct amount {
    double bytes = 0;
    std::int64_t messages = 0;
  };
  [[nodiscard]] const amount& of(int from, int to) const {
    return sent_[std::size_t(from) * std::size_t(world_) + std::size_t(to)];
  }

  int world_;
  const picture_options& options_;
  std::vector<amount> sent_;
  svg_text svg_;
};

}  // namespace orrery::detail

namespace orrery {

/// Draws who sends to whom as an SVG file: a row for each sender, a column for each receiver, the darker the more.
/// Numbers are written for up to 8 ranks, and are under the mouse for more. Nodes have borders. Colours follow the
/// reader's choice of light or dark. `bytes` is the size of a block, a function of (side, payload, block); see
/// `attention_sizes`.
///
///     const auto bytes = orrery::attention_sizes::of<orrery::flash<orrery::bfloat16>>(shape, pass, 16);
///     std::ofstream{"who.svg"} << orrery::traffic_svg(orrery::programs_of(topology, 16), bytes,
///                                                     {.title = topology.name(), .ranks_per_node = 4});
///
/// Costs a line of the file for each pair of ranks that exchange something. Throws `std::invalid_argument` if
/// `ranks_per_node` is less than 1.
template <class Cost>
[[nodiscard]] std::string traffic_svg(const schedule::list<schedule::program>& programs, const Cost& bytes,
                                      const picture_options& options = {}) {
  detail::traffic_drawing drawing{programs.size(), options};
  for (const schedule::program& p : programs) {
    for (const schedule::exchange& x : p.exchanges) {
      if (x.sent.count == 0) continue;
      double all = 0;
      for (const schedule::block& b : p.sent_by(x)) all += static_cast<double>(bytes(b.side, x.payload, b));
      drawing.add(p.rank, x.to, all);
    }
  }
  return drawing.text();
}

}  // namespace orrery
