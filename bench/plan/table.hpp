// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tables of bench/plan.cpp: for people, and as JSON.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

#include "orrery/predict/detail/visible_pairs.hpp"
#include "orrery/tune/recommend.hpp"

/// The part of all pairs that a mask leaves.
template <orrery::mask Mask>
[[nodiscard]] double visible_share(const orrery::attention_shape& completed, const Mask& mask) {
  const auto whole = [](std::int64_t length) { return orrery::segment{0, length, length, length}; };
  const auto pairs =
      orrery::detail::count_visible_pairs(mask, whole(completed.length), whole(*completed.key_length)).pairs;
  return static_cast<double>(pairs) / static_cast<double>(completed.length) /
         static_cast<double>(*completed.key_length);
}

/// The least bytes that a rank must receive in a forward, on average, if each computes as many visible pairs: with the
/// heads cut into u slices, x query shards and y key shards of one slice are at most x * y pairs, so that x * y is at
/// least u * world * share. The least over u, x and y of what is not the rank's own (after Driscoll et al., IPDPS
/// 2013).
[[nodiscard]] inline double least_bytes(const orrery::attention_shape& completed, int world, double share) {
  constexpr double storage = 2, sum = 4;
  const double tokens = static_cast<double>(completed.batch * completed.length) / world;
  const auto query_heads = static_cast<double>(completed.query_heads),
             key_heads = static_cast<double>(*completed.key_heads);
  const auto d = static_cast<double>(completed.head_dim), v = static_cast<double>(*completed.value_dim);
  const double of_query = tokens * query_heads * (d * storage + (v + 1) * sum);  // Q, and O with its log-sum-exp
  const double of_key = tokens * key_heads * (d + v) * storage;
  double least = -1;
  for (std::int64_t u = 1; u <= (std::min)(completed.query_heads, std::int64_t{world}); ++u) {
    const double slices = static_cast<double>(u), area = (std::max)(slices * world * share, 1.0);
    const double x_cost = of_query / slices, y_cost = of_key * (std::max)(1 / slices, 1 / key_heads);
    const double lowest = (std::max)(1.0, area / world), highest = static_cast<double>(world);
    const double x = std::clamp(std::sqrt(area * y_cost / x_cost), lowest, (std::max)(lowest, highest));
    const double cost = (x - 1) * x_cost + ((std::max)(area / x, 1.0) - 1) * y_cost;
    if (least < 0 || cost < least) least = cost;
  }
  return least;
}

/// One schedule's figures.
struct plan_figures {
  double tokens_per_second;
  double volume_ratio;  ///< 0: nothing must be sent

  plan_figures(const orrery::recommendation::entry& one, const orrery::attention_shape& completed, double least) {
    tokens_per_second = static_cast<double>(completed.batch * completed.length) / one.seconds();
    double bytes = 0;
    for (const auto& level : one.forward.levels) bytes += static_cast<double>(level.bytes);
    volume_ratio = least > 0 ? bytes / one.forward.world / least : 0;
  }
};

[[nodiscard]] inline std::string digits(const char* format, double value) {
  char text[48];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

/// A table in Markdown: a row for each schedule.
template <orrery::mask Mask>
[[nodiscard]] std::string plan_table(const orrery::recommendation& found, const orrery::attention_shape& shape,
                                     const Mask& mask, std::size_t rows) {
  using orrery::detail::bytes_text;
  using orrery::detail::seconds_text;
  if (found.ranked.empty()) return "Nothing can be used: " + found.others.front().reason + "\n";
  const orrery::attention_shape completed = shape.completed();
  const double least = least_bytes(completed, found.ranked[0].forward.world, visible_share(completed, mask));
  std::string text = "| | schedule | time | tokens/s |";
  for (const auto& level : found.ranked[0].forward.levels) text += " sent in " + level.name + " |";
  text += " volume | memory | what limits the longer pass |\n| --- | --- | --- | --- |";
  for (std::size_t l = 0; l < found.ranked[0].forward.levels.size(); ++l) text += " --- |";
  text += " --- | --- | --- |\n";
  for (std::size_t i = 0; i < found.ranked.size(); ++i) {
    const orrery::recommendation::entry& one = found.ranked[i];
    if (i >= rows && one.topology.name() != "ring") continue;
    const plan_figures figures{one, completed, least};
    text += "| " + digits("%.2f", one.seconds() / found.ranked[0].seconds()) + " | `" + one.topology.name() + "`";
    if (one.circulate != orrery::pass::forward) {
      text += one.circulate == orrery::pass::circulate_keys ? ", keys" : ", queries";
    }
    text += " | " + seconds_text(one.seconds()) + " | " + digits("%.3g", figures.tokens_per_second) + " |";
    for (std::size_t l = 0; l < one.forward.levels.size(); ++l) {
      double bytes = static_cast<double>(one.forward.levels[l].bytes);
      if (l < one.backward.levels.size()) bytes += static_cast<double>(one.backward.levels[l].bytes);
      text += " " + bytes_text(bytes) + " |";
    }
    const orrery::prediction& longer = one.backward.seconds > one.forward.seconds ? one.backward : one.forward;
    text += " " + (figures.volume_ratio > 0 ? digits("%.2f", figures.volume_ratio) : std::string{"-"}) + " | " +
            bytes_text(static_cast<double>(one.peak_bytes())) + " | " + longer.why() + " |\n";
  }
  for (const auto& one : found.others) text += "\nRefused: `" + one.name + "`: " + one.reason + "\n";
  return text;
}

[[nodiscard]] inline std::string json_string(const std::string& text) {
  std::string all = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') all += '\\';
    all += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return all + "\"";
}

/// All rows, times in seconds.
template <orrery::mask Mask>
[[nodiscard]] std::string plan_json(const orrery::recommendation& found, const orrery::attention_shape& shape,
                                    const Mask& mask, const std::string& machine) {
  const orrery::attention_shape completed = shape.completed();
  std::string text = "{\"machine\": " + json_string(machine) + ", \"tokens\": " + std::to_string(shape.length) +
                     ", \"mask\": " + json_string(mask.name()) + ", \"schedules\": [";
  for (std::size_t i = 0; i < found.ranked.size(); ++i) {
    const orrery::recommendation::entry& one = found.ranked[i];
    const double least = least_bytes(completed, one.forward.world, visible_share(completed, mask));
    const plan_figures figures{one, completed, least};
    text += std::string{i == 0 ? "\n" : ",\n"} + "  {\"topology\": " + json_string(one.topology.name()) +
            ", \"circulate\": " + json_string(orrery::name_of(one.circulate)) +
            ", \"forward_seconds\": " + digits("%.9g", one.forward.seconds) +
            ", \"backward_seconds\": " + digits("%.9g", one.backward.seconds) +
            ", \"tokens_per_second\": " + digits("%.9g", figures.tokens_per_second) +
            ", \"volume_over_bound\": " + digits("%.6g", figures.volume_ratio) +
            ", \"peak_bytes\": " + std::to_string(one.peak_bytes()) + ", \"levels\": [";
    for (std::size_t l = 0; l < one.forward.levels.size(); ++l) {
      const std::int64_t backward = l < one.backward.levels.size() ? one.backward.levels[l].bytes : 0;
      text += std::string{l == 0 ? "" : ", "} + "{\"name\": " + json_string(one.forward.levels[l].name) +
              ", \"forward_bytes\": " + std::to_string(one.forward.levels[l].bytes) +
              ", \"backward_bytes\": " + std::to_string(backward) + "}";
    }
    text +=
        "], \"why\": " + json_string((one.backward.seconds > one.forward.seconds ? one.backward : one.forward).why()) +
        "}";
  }
  text += "\n], \"refused\": [";
  for (std::size_t i = 0; i < found.others.size(); ++i) {
    text += std::string{i == 0 ? "\n" : ",\n"} + "  {\"name\": " + json_string(found.others[i].name) +
            ", \"reason\": " + json_string(found.others[i].reason) + "}";
  }
  return text + "\n]}\n";
}
