// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "orrery/attention/shape.hpp"
#include "orrery/detail/number_digest.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/predict/detail/visible_pairs.hpp"
#include "orrery/predict/prediction.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/transport/transport.hpp"
#include "orrery/tune/detail/choice_file.hpp"
#include "orrery/tune/recommend.hpp"
#include "orrery/tune/schedule_choice.hpp"

namespace orrery::detail {

/// Raised with every change of what `simulate` predicts or `recommend` prefers: choices of before are made again.
inline constexpr int prediction_version = 1;

/// A digest of how many pairs the mask leaves of each two shards, and how they lie: what predictions know of it.
/// Empty if there are too many to count, or if the layout is wrong.
template <mask Mask>
[[nodiscard]] std::string digest_of_pairs(const Mask& mask, const layout_source& layout, int world,
                                          const attention_shape& shape) {
  constexpr std::int64_t most = std::int64_t{1} << 22;
  list<segments> shards[2];
  for (const bool of_keys : {false, true}) {
    const std::int64_t length = of_keys ? *shape.key_length : shape.length;
    int chunks = 1;
    if (!layout.has_whole_shards() && !layout.count_chunks(world, length, chunks).empty()) return "";
    if (!layout.deal(world, length, chunks, shards[of_keys ? 1 : 0]).empty()) return "";
  }
  if (std::int64_t{shards[0].size()} * shards[1].size() > most) return "";
  number_digest digest;
  for (const segments& queries : shards[0]) {
    for (const segment& q : queries) {
      digest.add(q.begin);
      digest.add(q.count);
      for (const segments& keys : shards[1]) {
        for (const segment& k : keys) {
          const pair_count n = count_visible_pairs(mask, q, k);
          for (const std::int64_t one : {n.pairs, n.rows, n.longest_row, n.partial_rows}) digest.add(one);
        }
      }
    }
  }
  return digest.text();
}

/// A text that names a type. Compilers write it differently.
template <class T>
[[nodiscard]] std::string text_of_type() {
  return __PRETTY_FUNCTION__;
}

/// The number of a topology in the list; its length if it is not there.
[[nodiscard]] inline std::size_t index_of(const std::vector<any_topology>& candidates, const std::string& name) {
  std::size_t i = 0;
  while (i < candidates.size() && candidates[i].name() != name) ++i;
  return i;
}

/// The names of candidates, each with a digest of its programs for a world: the same name may come to mean another
/// schedule.
[[nodiscard]] inline std::string digests_of(const std::vector<any_topology>& candidates, int world) {
  std::string text;
  for (const any_topology& one : candidates) {
    schedule::schedule_digest digest;
    for (const schedule::pass p :
         {schedule::pass::forward, schedule::pass::circulate_keys, schedule::pass::circulate_queries}) {
      if (unsupported_reason(one, world, p) != nullptr) continue;
      for (const schedule::program& program : programs_of(one, world, p)) digest.add(program);
    }
    text += (text.empty() ? "" : "; ") + one.name() + " " + digest.text();
  }
  return text;
}

/// The first name that two candidates share, or none.
[[nodiscard]] inline std::string name_of_two(const std::vector<any_topology>& candidates) {
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (index_of(candidates, candidates[i].name()) != i) return candidates[i].name();
  }
  return "";
}

/// All that a choice depends on, a line for each. Empty if that cannot be said: then nothing is remembered.
template <mask Mask>
[[nodiscard]] std::string choice_key(int world, const std::string& transport, const attention_shape& shape,
                                     const std::string& kernel, const Mask& mask, const layout_source& layout,
                                     const std::string& machine_text, const std::string& candidates) {
  const std::string pairs = digest_of_pairs(mask, layout, world, shape);
  if (pairs.empty()) return "";
  const auto line = [](const char* name, const std::string& value) {
    return std::string{name} + " " + in_one_line(value) + "\n";
  };
  return line("predictions", std::to_string(prediction_version)) + line("world", std::to_string(world)) +
         line("transport", transport) + line("shape", to_string(shape)) + line("kernel", kernel) +
         line("mask", std::string{mask.name()}) + line("layout", layout.name()) + line("pairs", pairs) +
         line("candidates", candidates) + line("machine", machine_text);
}

/// What the file says of this key; without a schedule if it says nothing.
[[nodiscard]] inline schedule_choice remembered(const choice_file& file, const std::string& key,
                                                const std::vector<any_topology>& candidates) {
  schedule_choice choice;
  const remembered_choice* const known = key.empty() ? nullptr : file.find(key);
  if (known == nullptr) return choice;
  for (schedule_choice::candidate one : known->ranked) {
    one.index = index_of(candidates, one.name);
    if (one.index < candidates.size()) choice.ranked.push_back(one);
  }
  if (choice.ranked.empty()) return choice;
  choice.from = schedule_choice::source::remembered;
  const bool is_measured = choice.chosen().measured > 0;
  choice.why = choice.chosen().name + ", as remembered: " + (is_measured ? "measured " : "predicted ") +
               seconds_text(is_measured ? choice.chosen().measured : choice.chosen().predicted);
  return choice;
}

/// Throws `std::invalid_argument` with the reasons if nothing can be used.
[[nodiscard]] inline schedule_choice choice_of(const recommendation& found,
                                               const std::vector<any_topology>& candidates) {
  const recommendation::entry& best = found.best();
  schedule_choice choice;
  for (const recommendation::entry& one : found.ranked) {
    choice.ranked.push_back(
        {index_of(candidates, one.topology.name()), one.topology.name(), one.circulate, one.seconds(), 0});
  }
  const prediction& longer = best.backward.seconds > best.forward.seconds ? best.backward : best.forward;
  choice.why = best.name() + ", predicted " + seconds_text(best.seconds()) +
               (longer.pass == schedule::pass::forward ? "; forward " : "; backward ") + longer.why();
  return choice;
}

/// A choice for the other ranks: a line of where it is from, one of why, and one for each candidate.
[[nodiscard]] inline std::string text_of_choice(const schedule_choice& choice) {
  std::string text = choice.from == schedule_choice::source::remembered ? "remembered\n" : "predicted\n";
  text += in_one_line(choice.why) + "\n";
  for (const schedule_choice::candidate& one : choice.ranked) text += line_of(one) + "\n";
  return text;
}
/// Throws `transport_error` for any other text: then rank 0 has another program.
[[nodiscard]] inline schedule_choice choice_of_text(std::string_view text,
                                                    const std::vector<any_topology>& candidates) {
  schedule_choice choice;
  for (int number = 0; !text.empty(); ++number) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix((std::min)(line.size() + 1, text.size()));
    if (number == 0) {
      choice.from = line == "remembered" ? schedule_choice::source::remembered : schedule_choice::source::predicted;
      continue;
    }
    if (number == 1) {
      choice.why = line;
      continue;
    }
    schedule_choice::candidate one;
    const bool is_candidate = read_line(line, one);
    one.index = index_of(candidates, one.name);
    if (!is_candidate || one.index == candidates.size()) {
      throw transport_error{"orrery: tuned: rank 0 chose \"" + std::string{line} +
                            "\", which this rank does not know; start all ranks with the same program"};
    }
    choice.ranked.push_back(one);
  }
  if (!choice.ranked.empty()) return choice;
  throw transport_error{"orrery: tuned: rank 0 chose nothing; let all ranks make the same calls, in one order"};
}

/// The median over calls of the slowest rank's seconds. Collective; the same on all ranks.
template <transport World>
[[nodiscard]] double median_of_slowest(World& world, const std::vector<double>& seconds) {
  // All ranks' seconds as a sum of lists that are 0 but for each rank's own part.
  const std::size_t calls = seconds.size();
  std::vector<double> all(calls * static_cast<std::size_t>(world.size()));
  std::copy(seconds.begin(), seconds.end(),
            all.begin() + static_cast<std::ptrdiff_t>(calls * static_cast<std::size_t>(world.rank())));
  world.all_reduce_sum(std::span<double>{all});
  std::vector<double> slowest(calls);
  for (std::size_t i = 0; i < all.size(); ++i) slowest[i % calls] = (std::max)(slowest[i % calls], all[i]);
  std::sort(slowest.begin(), slowest.end());
  return calls % 2 == 1 ? slowest[calls / 2] : (slowest[calls / 2 - 1] + slowest[calls / 2]) / 2;
}

}  // namespace orrery::detail
