// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>

#include "orrery/draw/detail/schedule_page.hpp"
#include "orrery/draw/detail/svg_text.hpp"
#include "orrery/draw/grid.hpp"
#include "orrery/draw/picture_options.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// Writes programs as the data of a page: see `schedule_html`.
class schedule_page {
 public:
  /// A string of JavaScript, which may stand in a script element.
  [[nodiscard]] static std::string quoted(std::string_view text) {
    std::string all = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\' || c == '<' || static_cast<unsigned char>(c) < ' ') {
        char code[8];
        std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c)));
        all += code;
      } else {
        all += c;
      }
    }
    return all + "\"";
  }

  template <class Cost>
  void add(const program& p, const Cost& bytes) {
    data_ += data_.empty() ? "{steps:[" : ",\n{steps:[";
    for (int s = 0; s < p.steps.size(); ++s) {
      const tile& t = p.steps[s].tile;
      data_ += s == 0 ? "{" : ",{";
      if (!t.empty()) {
        list<int> queries, keys;
        for (const held_block& b : p.queries_of(t)) queries.push_back(b.block.shard * p.chunks + b.block.chunk);
        for (const held_block& b : p.keys_of(t)) keys.push_back(b.block.shard * p.chunks + b.block.chunk);
        const int slice = p.queries_of(t)[0].block.slice;
        const std::string of_slice = p.slices > 1 ? " in slice " + std::to_string(slice) : std::string{};
        data_ += "q:" + quoted(text_of_chunks(queries, p.chunks)) +
                 ",k:" + quoted(text_of_chunks(keys, p.chunks) + of_slice);
      }
      data_ += "}";
    }
    data_ += "],messages:[";
    bool first = true;
    for (const exchange& x : p.exchanges) {
      if (x.sent.count == 0) continue;
      double all = 0;
      for (const block& b : p.sent_by(x)) all += static_cast<double>(bytes(b.side, x.payload, b));
      char amount[32];
      std::snprintf(amount, sizeof amount, "%.17g", all);
      data_ += (first ? "[" : ",[") + std::to_string(x.posted) + "," + std::to_string(x.complete_before) + "," +
               std::to_string(x.to) + "," + std::to_string(x.lane) + "," + std::to_string(kind(p, x)) + "," +
               quoted(text_of(p, x)) + "," + amount + "]";
      first = false;
    }
    data_ += "]}";
  }

  [[nodiscard]] std::string text(const picture_options& options) const {
    const std::string title = options.title.empty() ? "A schedule" : options.title;
    return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
           "<meta name=\"color-scheme\" content=\"light dark\">\n<title>" +
           svg_text::escaped(title) + "</title>\n" + schedule_page_head + "const schedule = {title: " + quoted(title) +
           ", ranks_per_node: " + std::to_string(options.ranks_per_node) + ", ranks: [\n" + data_ + "\n]};" +
           schedule_page_script;
  }

 private:
  /// 0: query operands; 1: key operands; 2: partials; 3: operands of both sides.
  [[nodiscard]] static int kind(const program& p, const exchange& x) {
    if (x.payload == payload::partial) return 2;
    bool has[2] = {false, false};
    for (const block& b : p.sent_by(x)) has[b.side == side::key ? 1 : 0] = true;
    return has[0] && has[1] ? 3 : has[1] ? 1 : 0;
  }
  /// "query 0-3, key 0-3 in slice 2".
  [[nodiscard]] static std::string text_of(const program& p, const exchange& x) {
    std::string text;
    for (const side s : {side::query, side::key}) {
      list<int> shards, slices;
      for (const block& b : p.sent_by(x)) {
        if (b.side != s) continue;
        shards.push_back(b.shard * p.chunks + b.chunk);
        slices.push_back(b.slice);
      }
      if (shards.empty()) continue;
      text += (text.empty() ? "" : ", ") + std::string{s == side::query ? "query " : "key "} +
              text_of_chunks(shards, p.chunks);
      if (p.slices > 1) text += " in slice " + text_of_runs(slices);
    }
    return text;
  }

  std::string data_;
};

}  // namespace orrery::detail

namespace orrery {

/// Writes a page of its own, for a browser, that steps through a schedule: ranks on a circle, what each computes, and
/// the messages that are in flight, by arrow keys, a slider or `#step=3` at the end of the address. Under the mouse are
/// blocks and bytes. The page needs nothing else, and follows the reader's choice of light or dark. `bytes` is the size
/// of a block, a function of (side, payload, block); see `attention_sizes`.
///
///     std::ofstream{"schedule.html"} << orrery::schedule_html(orrery::programs_of(topology, 16), bytes,
///                                                             {.title = topology.name(), .ranks_per_node = 4});
///
/// Costs some 60 bytes of the file for each message and each step of a rank; good to about 64 ranks. Throws
/// `std::invalid_argument` if `ranks_per_node` is less than 1.
template <class Cost>
[[nodiscard]] std::string schedule_html(const schedule::list<schedule::program>& programs, const Cost& bytes,
                                        const picture_options& options = {}) {
  if (options.ranks_per_node < 1) {
    throw std::invalid_argument{"orrery: schedule_html: ranks_per_node is " + std::to_string(options.ranks_per_node) +
                                ", expected at least 1"};
  }
  detail::schedule_page page;
  for (const schedule::program& p : programs) page.add(p, bytes);
  return page.text(options);
}

}  // namespace orrery
