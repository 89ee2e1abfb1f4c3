// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <string>
#include <utility>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/schedule/walk.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery::detail {

/// Writes numbers in ascending order and without duplicates, three or more in a row as "first-last": "0-3,7".
[[nodiscard]] inline std::string text_of_runs(list<int> numbers) {
  for (int sorted = 1; sorted < numbers.size(); ++sorted) {
    for (int i = sorted; i > 0 && numbers[i] < numbers[i - 1]; --i) std::swap(numbers[i], numbers[i - 1]);
  }
  std::string text;
  for (int i = 0; i < numbers.size();) {
    int last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] - numbers[last] <= 1) ++last;
    const int first = numbers[i], count = numbers[last] - first + 1;
    text += (text.empty() ? "" : ",") + std::to_string(first);
    if (count > 1) text += (count == 2 ? "," : "-") + std::to_string(numbers[last]);
    i = last + 1;
  }
  return text;
}

/// Writes chunks, each as shard * chunks + chunk, as their shards if these are all there, "0-3,7"; else as "0.1", which
/// is chunk 1 of shard 0.
[[nodiscard]] inline std::string text_of_chunks(const list<int>& numbers, int chunks) {
  if (chunks == 1) return text_of_runs(numbers);
  list<int> whole, others;
  for (const int number : numbers) {
    list<bool> seen(chunks);
    for (const int other : numbers) seen[other % chunks] = seen[other % chunks] || other / chunks == number / chunks;
    bool all = true;
    for (const bool one : seen) all = all && one;
    (all ? whole : others).push_back(all ? number / chunks : number);
  }
  std::string text = text_of_runs(whole);
  for (const int number : others)
    text += (text.empty() ? "" : ",") + std::to_string(number / chunks) + "." + std::to_string(number % chunks);
  return text;
}

/// The drawing of schedules as a table of ranks and steps: see `draw_grid`.
class grid_drawing {
 public:
  grid_drawing(const list<program>& programs, std::size_t width)
      : ranks_{programs.size()}, width_{width}, margin_{std::to_string(programs.size()).size()} {
    for (const program& p : programs) steps_ = p.steps.size() > steps_ ? p.steps.size() : steps_;
    cells_ = list<cell>(ranks_ * steps_);
    for (int rank = 0; rank < ranks_; ++rank) {
      rank_reader row{*this, programs[rank], rank};
      walk(programs[rank], row);
    }
  }

  [[nodiscard]] std::string text() const {
    std::string drawing;
    for (int first = 0; first < steps_;) {
      std::size_t line = 5 + margin_ + 3 + width_of(first);
      int end = first + 1;
      while (end < steps_ && line + 3 + width_of(end) <= width_) line += 3 + width_of(end++);
      if (first > 0) drawing += "\n";
      drawing += columns(first, end);
      first = end;
    }
    return drawing + legend();
  }

 private:
  using cell = list<std::string>;  // its lines

  /// Adds a word to the last line of the cell, or in a new line if it has no room there.
  void add(cell& to, const std::string& word) const {
    if (!to.empty() && to.back().size() + 1 + word.size() <= width_ / 3) {
      to.back() += " " + word;
    } else {
      to.push_back(word);
    }
  }

  /// Fills the cells of one rank: of each step the tile, then the messages, one word for all that differ in their
  /// receivers only.
  struct rank_reader : visitor {
    grid_drawing& grid;
    const program& p;
    int rank;
    int now = 0;
    std::string tile_text;
    list<std::string> contents;
    list<list<int>> receivers;

    rank_reader(grid_drawing& drawing, const program& of, int number) : grid{drawing}, p{of}, rank{number} {}

    void begin_step(int step) {
      finish_step();
      now = step;
    }
    void post(int, int, const exchange& x) {
      if (x.sent.count == 0) return;
      const std::string text = grid.content_of(p, x);
      int known = 0;
      while (known < contents.size() && contents[known] != text) ++known;
      if (known == contents.size()) {
        contents.push_back(text);
        receivers.push_back({});
      }
      receivers[known].push_back(x.to);
    }
    void compute(int, const tile& t) {
      tile_text = shards_of(p.queries_of(t)) + "x" + shards_of(p.keys_of(t));
      if (p.slices > 1) tile_text += slice_mark(p) + std::to_string(p.queries_of(t)[0].block.slice);
      grid.tiles_ = true;
      grid.slices_ = grid.slices_ || p.slices > 1;
      grid.chunks_ = grid.chunks_ || p.chunks > 1;
    }
    void finish_step() {
      if (now >= p.steps.size()) return;  // there is no cell of what completes last
      cell& to = grid.cells_[rank * grid.steps_ + now];
      if (!tile_text.empty()) grid.add(to, tile_text);
      for (int m = 0; m < contents.size(); ++m) grid.add(to, ">" + text_of_runs(receivers[m]) + ":" + contents[m]);
      tile_text.clear();
      contents = {};
      receivers = {};
    }
    [[nodiscard]] std::string shards_of(const entries<const held_block>& blocks) const {
      list<int> shards;
      for (const held_block& held : blocks) shards.push_back(number_of(p, held.block));
      return text_of_chunks(shards, p.chunks);
    }
  };

  /// What an exchange sends, and how: ":+q1.0@2~5" without the colon.
  [[nodiscard]] std::string content_of(const program& p, const exchange& x) {
    const bool partial = x.payload == payload::partial;
    std::string text = partial ? "+" : "", slices_before;
    for (const side s : {side::query, side::key}) {
      // Shards of which the same slices are sent, together.
      list<int> done;
      for (const block& first : p.sent_by(x)) {
        bool known = first.side != s;
        for (const int number : done) known = known || number == number_of(p, first);
        if (known) continue;
        const std::string slices = slices_of(p, x, first);
        list<int> shards;
        for (const block* other = &first; other != p.sent_by(x).end(); ++other) {
          if (other->side == s && slices_of(p, x, *other) == slices) {
            shards.push_back(number_of(p, *other));
            done.push_back(number_of(p, *other));
          }
        }
        if (slices != slices_before) text += slices_before;
        slices_before = slices;
        text += (s == side::query ? "q" : "k") + text_of_chunks(shards, p.chunks);
        sends_[kind_of(s, x.payload)] = true;
      }
    }
    text += slices_before;
    slices_ = slices_ || !slices_before.empty();
    if (x.lane != 0) text += "@" + std::to_string(x.lane);
    lanes_ = lanes_ || x.lane != 0;
    if (x.complete_before != x.posted + 1) text += "~" + std::to_string(x.complete_before);
    flights_ = flights_ || x.complete_before != x.posted + 1;
    return text;
  }

  [[nodiscard]] static int number_of(const program& p, const block& b) { return b.shard * p.chunks + b.chunk; }
  /// What stands before slices.
  [[nodiscard]] static const char* slice_mark(const program& p) { return p.chunks == 1 ? "." : "/"; }

  /// Which slices of a block's chunk an exchange sends; empty if all.
  [[nodiscard]] static std::string slices_of(const program& p, const exchange& x, const block& of) {
    list<int> slices;
    for (const block& sent : p.sent_by(x)) {
      if (sent.side == of.side && number_of(p, sent) == number_of(p, of)) slices.push_back(sent.slice);
    }
    return slices.size() == p.slices ? "" : slice_mark(p) + text_of_runs(slices);
  }

  [[nodiscard]] const cell& cell_of(int rank, int step) const { return cells_[rank * steps_ + step]; }

  /// How many characters a step's column needs.
  [[nodiscard]] std::size_t width_of(int step) const {
    std::size_t widest = std::to_string(step).size();
    for (int rank = 0; rank < ranks_; ++rank) {
      for (const std::string& line : cell_of(rank, step)) widest = line.size() > widest ? line.size() : widest;
    }
    return widest;
  }

  /// Draws the columns of the steps [first, end) of all ranks.
  [[nodiscard]] std::string columns(int first, int end) const {
    const auto pad = [](std::string& line, std::size_t to) {
      if (line.size() < to) line.append(to - line.size(), ' ');
    };
    const auto finish = [](std::string line) {
      while (!line.empty() && line.back() == ' ') line.pop_back();
      return line + "\n";
    };
    std::string line = "step ", drawing;
    pad(line, 5 + margin_);
    for (int i = first; i < end; ++i) {
      const std::size_t begin = line.size() + 3;
      line += " | " + std::to_string(i);
      if (i + 1 < end) pad(line, begin + width_of(i));
    }
    drawing += finish(line);
    for (int rank = 0; rank < ranks_; ++rank) {
      int height = 1;
      for (int i = first; i < end; ++i) height = cell_of(rank, i).size() > height ? cell_of(rank, i).size() : height;
      for (int part = 0; part < height; ++part) {
        line = part == 0 ? "rank " + std::to_string(rank) : "";
        pad(line, 5 + margin_);
        for (int i = first; i < end; ++i) {
          const std::size_t begin = line.size() + 3;
          line += " | " + (part < cell_of(rank, i).size() ? cell_of(rank, i)[part] : std::string{});
          if (i + 1 < end) pad(line, begin + width_of(i));
        }
        drawing += finish(line);
      }
    }
    return drawing;
  }

  /// Explains the marks that occur.
  [[nodiscard]] std::string legend() const {
    std::string text;
    if (tiles_) text += "QxK     computes query shards Q with key shards K\n";
    if (sends_[query_operand]) text += ">R:qS   sends query shards S to ranks R\n";
    if (sends_[key_operand]) text += ">R:kS   sends key shards S to ranks R\n";
    if (sends_[query_partial]) text += ">R:+qS  sends partials of query shards S to ranks R\n";
    if (sends_[key_partial]) text += ">R:+kS  sends partials of key shards S to ranks R\n";
    if (chunks_) text += ".C      chunk C of a shard; without it, all its chunks\n";
    if (slices_)
      text += (chunks_ ? "/H" : ".H") + std::string{"      of slices H of the heads; without it, of all slices\n"};
    if (lanes_) text += "@L      in lane L; without it, in lane 0\n";
    if (flights_) text += "~T      in flight until step T; without it, until the next step\n";
    return (text.empty() ? "" : "\n") + text;
  }

  list<cell> cells_;  // of each rank, its steps
  int ranks_;
  int steps_ = 0;
  std::size_t width_;
  std::size_t margin_;
  bool tiles_ = false, slices_ = false, chunks_ = false, lanes_ = false, flights_ = false;
  bool sends_[slot_kinds] = {};
};

}  // namespace orrery::detail

namespace orrery {

/// Draws programs for a terminal: a row for each rank, a column for each step, and a legend of the marks that occur.
///
/// A cell shows the step's tile as `queries x keys`, then what the step sends: `>3:k1` is key shard 1 to rank 3,
/// `>3:+q1` the partial of query shard 1. Runs of shards and ranks are written `0-3`, slices of the heads `.1`. Where
/// shards are cut into chunks, `>3:k1.0` is chunk 0 of key shard 1, and slices are written `/1`.
/// `@1` marks a message in lane 1, `~5` a message that is in flight for several steps, until step 5.
///
/// Lines have at most `width` characters where possible: steps that have no room in them follow below, and a cell wider
/// than a third of them has several lines.
[[nodiscard]] inline std::string draw_grid(const schedule::list<schedule::program>& programs, std::size_t width = 100) {
  return detail::grid_drawing{programs, width}.text();
}

/// Draws a topology's schedule. Throws `std::invalid_argument` if the world is refused.
template <topology Topology>
[[nodiscard]] std::string draw_grid(const Topology& t, int world, schedule::pass p = schedule::pass::forward,
                                    std::size_t width = 100) {
  detail::require_admitted(t, world, p);
  return draw_grid(programs_of(t, world, p), width);
}

}  // namespace orrery
