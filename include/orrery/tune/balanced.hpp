// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/dispatched.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/tune/detail/visible_area.hpp"

namespace orrery {

/// What `balanced` and `imbalance` are asked about.
struct balance_options {
  /// Tokens of the sequence.
  std::int64_t length = 0;
  /// Tokens of the key sequence; 0: as many.
  std::int64_t key_length = 0;
  /// Pieces for each rank. 0: as few as keep within `tolerance`, a power of two up to 64.
  int chunks = 0;
  /// The busiest rank may have this many thousandths of the average work.
  int tolerance = 1050;
};

}  // namespace orrery

namespace orrery::detail {

/// Rectangles of masks that say nothing of rows are cut down to a 512th of the sequence. Throws if the mask is not one
/// of these lengths.
template <mask Mask>
[[nodiscard]] visible_area<Mask> area_of(const char* call, const Mask& mask, const balance_options& options) {
  const std::int64_t keys = options.key_length > 0 ? options.key_length : options.length;
  if (const std::string wrong = wrong_lengths_of(mask, options.length, keys); !wrong.empty()) {
    throw std::invalid_argument{std::string{"orrery: "} + call + ": mask " + std::string{mask.name()} + ": " + wrong};
  }
  return {mask, keys, (std::max)(options.length, keys) / 512 + 16};
}

inline void check_balance(const char* call, int world, const balance_options& options) {
  const auto refuse = [&](const std::string& name, std::int64_t is, const std::string& expected) {
    throw std::invalid_argument{std::string{"orrery: "} + call + ": " + name + " is " + std::to_string(is) +
                                ", expected " + expected};
  };
  if (world < 1) refuse("world", world, "at least 1");
  // The number of pairs is one of 64 bits.
  constexpr std::int64_t most = std::int64_t{1} << 31;
  if (options.length < 1 || options.length > most) refuse("length", options.length, "1 to 2^31");
  if (options.key_length < 0 || options.key_length > most) refuse("key_length", options.key_length, "0 to 2^31");
  if (options.chunks < 0 || options.chunks > most_chunks) {
    refuse("chunks", options.chunks, "0 to " + std::to_string(most_chunks));
  }
  if (options.tolerance < 1000) refuse("tolerance", options.tolerance, "at least 1000, thousandths of the average");
}

/// The busiest rank's work divided by the average; 1 if there is none.
[[nodiscard]] inline double ratio_to_average(const std::vector<std::int64_t>& work) {
  std::int64_t sum = 0;
  for (const std::int64_t of_rank : work) sum += of_rank;
  if (sum == 0) return 1;
  return static_cast<double>(*std::max_element(work.begin(), work.end())) * static_cast<double>(work.size()) /
         static_cast<double>(sum);
}

/// Deals pieces of these areas out, equally many to each rank: the largest first, each to the rank that has least so
/// far and still has room. Returns their owners, and adds the areas up in `work`.
[[nodiscard]] inline std::vector<int> deal_pieces(const std::vector<std::int64_t>& areas, int world,
                                                  std::vector<std::int64_t>& work) {
  const std::size_t ranks = static_cast<std::size_t>(world);
  const std::size_t of_each = areas.size() / ranks;
  std::vector<std::size_t> order(areas.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return areas[a] > areas[b]; });
  using rank_with_least = std::pair<std::int64_t, int>;
  std::priority_queue<rank_with_least, std::vector<rank_with_least>, std::greater<>> with_room;
  for (int rank = 0; rank < world; ++rank) with_room.push({0, rank});
  work.assign(ranks, 0);
  std::vector<std::size_t> owned(ranks);
  std::vector<int> owners(areas.size());
  for (const std::size_t piece : order) {
    const auto [sum, rank] = with_room.top();
    const auto r = static_cast<std::size_t>(rank);
    with_room.pop();
    owners[piece] = rank;
    work[r] = sum + areas[piece];
    if (++owned[r] < of_each) with_room.push({work[r], rank});
  }
  // Which rank is which is free: in the order of their first pieces, neighbours have neighbouring tokens.
  std::vector<int> name(ranks, -1);
  int named = 0;
  for (int& owner : owners) {
    int& now = name[static_cast<std::size_t>(owner)];
    if (now < 0) now = named++;
    owner = now;
  }
  return owners;
}

}  // namespace orrery::detail

namespace orrery {

/// Finds a layout that gives every rank as many queries and, as nearly as may be, as many visible pairs. The sequence
/// is cut into equal pieces, and the pieces are dealt out: the largest area first, each to the rank that has least.
///
///     const auto mask = orrery::prefix{4096} & orrery::window{.left = 8191};
///     const orrery::dispatched layout = orrery::balanced(mask, world.size(), {.length = 65536});
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{world, shape, mask, layout};
///
/// For `causal` this is `zigzag`. Where one piece a rank is balanced, as for `full` and windows, it is `contiguous`.
/// More pieces balance better, and spread the keys that a rank's queries see over more ranks. For packed documents see
/// also `pack`, which moves work instead of tokens, and `per_document`.
///
/// Cost: one question to the mask for each query if its rows are intervals (`mask_with_keys_of`); else `classify` for
/// up to about 10^6 rectangles, and the areas of what it calls `some` are estimates. The result follows from the
/// arguments alone, in integers: all ranks get the same. Throws `std::invalid_argument` for an argument out of range.
template <mask Mask>
[[nodiscard]] dispatched balanced(const Mask& mask, int world, const balance_options& options) {
  detail::check_balance("balanced", world, options);
  const auto area = detail::area_of("balanced", mask, options);
  std::optional<dispatched> best;
  double best_imbalance = 0;
  const bool asked = options.chunks > 0;
  for (int chunks = asked ? options.chunks : 1; chunks <= (asked ? options.chunks : 64); chunks *= 2) {
    const std::int64_t pieces = std::int64_t{world} * chunks;
    if (pieces > schedule::most_chunks_of_world || (!asked && chunks > 1 && pieces > options.length)) break;
    std::vector<std::int64_t> areas;
    for (std::int64_t i = 0; i < pieces; ++i) {
      const segment piece = contiguous::piece(i, pieces, options.length);
      areas.push_back(area.of({piece.begin, piece.begin + piece.count - 1}));
    }
    std::vector<std::int64_t> work;
    const std::vector<int> owners = detail::deal_pieces(areas, world, work);
    const double imbalance = detail::ratio_to_average(work);
    if (!best || imbalance < best_imbalance) {
      best.emplace(world, owners);
      best_imbalance = imbalance;
    }
    if (imbalance * 1000 <= options.tolerance) break;
  }
  if (!best) {
    throw std::invalid_argument{"orrery: balanced: chunks is " + std::to_string(options.chunks) + ", which are " +
                                std::to_string(std::int64_t{world} * options.chunks) +
                                " on all ranks, expected at most " + std::to_string(schedule::most_chunks_of_world)};
  }
  return *best;
}

/// The visible pairs of the rank that has most under a layout, divided by the average; 1 if there are none. Of
/// `options` only the lengths count.
///
///     orrery::imbalance(orrery::causal{}, orrery::contiguous{}, 8, {.length = 4096});  // 1.87
///
/// Cost and exactness as of `balanced`, for segments that are runs; throws `std::invalid_argument` for an argument out
/// of range or a layout that is wrong.
template <mask Mask, layout Layout>
[[nodiscard]] double imbalance(const Mask& mask, const Layout& layout, int world, const balance_options& options) {
  detail::check_balance("imbalance", world, options);
  const detail::layout_source source{layout};
  schedule::list<segments> shards;
  int chunks = 1;
  std::string wrong = source.count_chunks(world, options.length, chunks);
  if (wrong.empty()) wrong = source.deal(world, options.length, chunks, shards);
  if (!wrong.empty()) throw std::invalid_argument{"orrery: imbalance: layout " + source.name() + " " + wrong};
  const auto area = detail::area_of("imbalance", mask, options);
  std::vector<std::int64_t> work(static_cast<std::size_t>(world));
  for (int i = 0; i < shards.size(); ++i) {
    for (const segment& piece : shards[i]) {
      for (std::int64_t done = 0; done < piece.count; done += piece.run) {
        const std::int64_t first = piece.position(done);
        const std::int64_t run = (std::min)(piece.run, piece.count - done);
        work[static_cast<std::size_t>(i / chunks)] += area.of({first, first + run - 1});
      }
    }
  }
  return detail::ratio_to_average(work);
}

}  // namespace orrery
