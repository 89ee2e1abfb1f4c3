// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <string>
#include <utility>

#include "orrery/schedule/list.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery {

/// Draws programs for a terminal: a row for each rank, a column for each step. A cell shows the step's tile as
/// `queries x keys`, then what it sends: `>3:k1` is key shard 1 to rank 3, `>3:+q1` the partial of query shard 1; runs
/// of shards are written `0-3`, a slice of the heads `.s`. Messages that a cell of `width` characters has no room for
/// are counted.
[[nodiscard]] inline std::string draw_grid(const schedule::list<schedule::program>& programs, std::size_t width = 28) {
  const auto runs = [](schedule::list<int> shards) {
    for (int sorted = 1; sorted < shards.size(); ++sorted) {
      for (int i = sorted; i > 0 && shards[i] < shards[i - 1]; --i) std::swap(shards[i], shards[i - 1]);
    }
    std::string text;
    for (int i = 0; i < shards.size();) {
      int j = i;
      while (j + 1 < shards.size() && shards[j + 1] == shards[j] + 1) ++j;
      text += (text.empty() ? "" : ",") + std::to_string(shards[i]);
      if (j > i) text += (j == i + 1 ? "," : "-") + std::to_string(shards[j]);
      i = j + 1;
    }
    return text;
  };
  const auto shards_of = [&](const schedule::list<schedule::held_block>& holders, const schedule::range& which) {
    schedule::list<int> shards;
    for (int b = which.first; b < which.end(); ++b) shards.push_back(holders[b].block.shard);
    return runs(shards);
  };
  int steps = 0;
  for (const schedule::program& p : programs) steps = p.steps.size() > steps ? p.steps.size() : steps;

  schedule::list<std::string> cells;  // of each rank, its steps
  for (const schedule::program& p : programs) {
    for (int i = 0; i < steps; ++i) {
      std::string cell;
      if (i < p.steps.size()) {
        const schedule::step& now = p.steps[i];
        if (!now.tile.empty()) {
          cell = shards_of(p.queries, now.tile.queries) + "x" + shards_of(p.keys, now.tile.keys);
          if (p.slices > 1) cell += "." + std::to_string(p.queries[now.tile.queries.first].block.slice);
        }
        int left_out = 0;
        for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) {
          const schedule::exchange& x = p.exchanges[e];
          if (x.sent.count == 0) continue;
          std::string message = (cell.empty() ? ">" : " >") + std::to_string(x.to) + ":" +
                                (x.payload == schedule::payload::partial ? "+" : "");
          for (const schedule::side s : {schedule::side::query, schedule::side::key}) {
            schedule::list<int> shards;
            for (int b = x.sent.first; b < x.sent.end(); ++b) {
              if (p.sent[b].side == s) shards.push_back(p.sent[b].shard);
            }
            if (!shards.empty()) message += (s == schedule::side::query ? "q" : "k") + runs(shards);
          }
          if (cell.size() + message.size() + 4 > width) {
            ++left_out;
          } else {
            cell += message;
          }
        }
        if (left_out > 0) cell += " +" + std::to_string(left_out);
      }
      cells.push_back(cell);
    }
  }

  const auto cell_of = [&](int rank, int i) -> const std::string& { return cells[rank * steps + i]; };
  schedule::list<std::size_t> widths;
  for (int i = 0; i < steps; ++i) {
    std::size_t widest = std::to_string(i).size();
    for (int rank = 0; rank < programs.size(); ++rank) {
      if (cell_of(rank, i).size() > widest) widest = cell_of(rank, i).size();
    }
    widths.push_back(widest);
  }
  const auto padded = [](const std::string& text, std::size_t to) { return text + std::string(to - text.size(), ' '); };
  const std::size_t margin = std::to_string(programs.size()).size();
  std::string drawing = "step " + std::string(margin, ' ');
  for (int i = 0; i < steps; ++i) drawing += " | " + padded(std::to_string(i), widths[i]);
  drawing += "\n";
  for (int rank = 0; rank < programs.size(); ++rank) {
    drawing += "rank " + padded(std::to_string(rank), margin);
    for (int i = 0; i < steps; ++i) drawing += " | " + padded(cell_of(rank, i), widths[i]);
    drawing += "\n";
  }
  return drawing;
}

/// Draws a topology's schedule. Throws `std::invalid_argument` if the world is refused.
template <topology Topology>
[[nodiscard]] std::string draw_grid(const Topology& t, int world, schedule::pass p = schedule::pass::forward,
                                    std::size_t width = 28) {
  detail::require_admitted(t, world, p);
  return draw_grid(programs_of(t, world, p), width);
}

}  // namespace orrery
