// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

#include "orrery/schedule/assignment.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/tune/detail/document_work.hpp"

namespace orrery::detail {

/// Returns a / b < c / d, for positive b and d. Exact, without products that could overflow.
[[nodiscard]] constexpr bool is_less_ratio(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) noexcept {
  const auto floor = [](std::int64_t x, std::int64_t y) { return x / y - (x % y < 0 ? 1 : 0); };
  for (;;) {
    const std::int64_t whole = floor(a, b), other_whole = floor(c, d);
    if (whole != other_whole) return whole < other_whole;
    const std::int64_t rest = a - whole * b, other_rest = c - other_whole * d;
    // rest / b < other_rest / d, both in [0, 1): compare the reciprocals the other way round.
    if (rest == 0 || other_rest == 0) return rest == 0 && other_rest != 0;
    a = d, c = b;
    b = other_rest, d = rest;
  }
}

/// Moves work between ranks until none has much more than the average. A column is what the queries of one rank's shard
/// compute with one chunk of keys; work moves by columns, or by single pairs of chunks where these are too large.
class work_balance {
 public:
  work_balance(const document_work& work, const token_weights& weights)
      : work_{work},
        weights_{weights},
        world_{static_cast<std::size_t>(work.world())},
        count_{static_cast<std::size_t>(work.count())},
        load_(world_),
        sent_(world_),
        columns_(world_),
        has_key_(world_ * count_),
        has_query_(world_ * count_),
        who_(count_) {
    const std::int64_t chunks = work.chunks();
    for (std::int64_t q = 0; q < work.count(); ++q) {
      const int rank = work.owner(q);
      columns& of = columns_[static_cast<std::size_t>(rank)];
      if (q % chunks == 0) of = {work.count(), 0, {}};
      if (work.first_key(q) < work.end_key(q)) {
        of.first = (std::min)(of.first, work.first_key(q));
        of.end = (std::max)(of.end, work.end_key(q));
      }
      who_[static_cast<std::size_t>(q)].assign(static_cast<std::size_t>(work.end_key(q) - work.first_key(q)), rank);
    }
    for (std::size_t rank = 0; rank < world_; ++rank) {
      columns& of = columns_[rank];
      if (of.first >= of.end) of.first = of.end = 0;
      of.pairs.assign(static_cast<std::size_t>(of.end - of.first), 0);
      for (std::int64_t q = static_cast<std::int64_t>(rank) * chunks; q < static_cast<std::int64_t>(rank + 1) * chunks;
           ++q) {
        for (std::int64_t k = work.first_key(q); k < work.end_key(q); ++k) {
          of.pairs[static_cast<std::size_t>(k - of.first)] += work.pairs(q, k);
          load_[rank] += work.pairs(q, k);
        }
      }
      for (std::int64_t k = of.first; k < of.end; ++k) {
        if (work.owner(k) != static_cast<int>(rank) && of.pairs[static_cast<std::size_t>(k - of.first)] > 0) {
          sent_[static_cast<std::size_t>(work.owner(k))] += weights.key;
        }
      }
    }
  }

  /// Until no rank has more than `tolerance` thousandths of the average, or nothing can be moved.
  void level(int tolerance) {
    const std::int64_t mean = work_.pairs() / work_.world();
    const std::int64_t most = mean + mean / 1000 * (tolerance - 1000) + mean % 1000 * (tolerance - 1000) / 1000;
    move_to_keys(most);
    std::vector<char> stuck(world_);
    for (;;) {
      int from = schedule::no_rank;
      for (int rank = 0; rank < work_.world(); ++rank) {
        if (stuck[index(rank)] != 0) continue;
        if (from == schedule::no_rank || load_[index(rank)] > load_[index(from)]) from = rank;
      }
      if (from == schedule::no_rank || load_[index(from)] <= most) return;
      if (!move_columns(from, mean) && !move_pairs(from, mean)) stuck[index(from)] = 1;
    }
  }

  [[nodiscard]] std::int64_t busiest_pairs() const { return *std::max_element(load_.begin(), load_.end()); }

  /// What every rank computes: first what it can without other ranks, then what it does for others, whose partials are
  /// under way while it computes the rest.
  [[nodiscard]] assignment tiles() const {
    assignment made;
    made.world = work_.world();
    made.chunks = work_.chunks();
    made.of_rank.resize(world_);
    // For each rank that computes, the ranks whose queries it computes.
    std::vector<std::vector<char>> works_for(world_, std::vector<char>(world_));
    for (std::int64_t q = 0; q < work_.count(); ++q) {
      for (std::int64_t k = work_.first_key(q); k < work_.end_key(q); ++k) {
        if (work_.pairs(q, k) > 0) works_for[index(who(q, k))][index(work_.owner(q))] = 1;
      }
    }
    for (int rank = 0; rank < work_.world(); ++rank) {
      std::vector<assignment::product>& all = made.of_rank[index(rank)];
      const bool own = works_for[index(rank)][index(rank)] != 0;
      if (own) add_tiles(all, rank, rank, true);
      for (int other = 0; other < work_.world(); ++other) {
        if (other == rank || works_for[index(rank)][index(other)] == 0) continue;
        add_tiles(all, rank, other, true);
        add_tiles(all, rank, other, false);
      }
      if (own) add_tiles(all, rank, rank, false);
    }
    return made;
  }

 private:
  struct columns {
    std::int64_t first = 0;
    std::int64_t end = 0;
    std::vector<std::int64_t> pairs;  // that the rank has kept
  };
  /// Some columns of one rank that another one could take.
  struct offer {
    int to = schedule::no_rank;
    std::int64_t cost = 0;
    std::int64_t pairs = 0;
    std::vector<std::int64_t> keys;
  };

  [[nodiscard]] static std::size_t index(int rank) noexcept { return static_cast<std::size_t>(rank); }
  [[nodiscard]] std::size_t index(int rank, std::int64_t chunk) const noexcept {
    return index(rank) * count_ + static_cast<std::size_t>(chunk);
  }
  [[nodiscard]] int who(std::int64_t query, std::int64_t key) const noexcept {
    return who_[static_cast<std::size_t>(query)][static_cast<std::size_t>(key - work_.first_key(query))];
  }
  [[nodiscard]] std::int64_t first_query(int rank) const noexcept { return std::int64_t{rank} * work_.chunks(); }
  [[nodiscard]] std::int64_t& column(int rank, std::int64_t key) noexcept {
    columns& of = columns_[index(rank)];
    return of.pairs[static_cast<std::size_t>(key - of.first)];
  }
  [[nodiscard]] bool computes(int rank, std::int64_t query, std::int64_t key) const noexcept {
    return work_.pairs(query, key) > 0 && who(query, key) == rank;
  }

  /// The columns from `first` to `end` that rank `from` still has, as many as fit into `amount`.
  void find(offer& found, int from, int to, std::int64_t first, std::int64_t end, std::int64_t amount) {
    found.to = to;
    found.cost = 3 * (weights_.query + weights_.partial) / 2;  // a tile and its messages cost something, too
    found.pairs = 0;
    found.keys.clear();
    std::int64_t first_row = work_.count(), last_row = -1;
    const std::int64_t busiest = 1 + *std::max_element(sent_.begin(), sent_.end());
    for (std::int64_t k = first; k < end; ++k) {
      const std::int64_t pairs = column(from, k);
      if (pairs == 0) continue;
      if (found.pairs + pairs > amount) break;
      found.pairs += pairs;
      found.keys.push_back(k);
      for (std::int64_t q = first_query(from); q < first_query(from + 1); ++q) {
        if (computes(from, q, k)) first_row = (std::min)(first_row, q), last_row = (std::max)(last_row, q);
      }
      // Keys of the busiest sender weigh five times as much as those of a rank that sends nothing.
      const std::int64_t key = weights_.key + weights_.key * 4 * sent_[index(work_.owner(k))] / busiest;
      if (work_.owner(k) != to && has_key_[index(to, k)] == 0) found.cost += key;
      if (work_.owner(k) != from) found.cost -= key;
    }
    for (std::int64_t q = first_row; q <= last_row; ++q) {
      if (has_query_[index(to, q)] == 0) found.cost += weights_.query + weights_.partial;
    }
  }

  /// Where few queries see many keys, the queries go to the owners of the keys: fewer bytes, if these have the time.
  void move_to_keys(std::int64_t most) {
    offer found;
    for (int from = 0; from < work_.world(); ++from) {
      const columns& of = columns_[index(from)];
      for (int to = 0; to < work_.world(); ++to) {
        const std::int64_t first = (std::max)(of.first, first_query(to));
        const std::int64_t end = (std::min)(of.end, first_query(to + 1));
        if (to == from || first >= end) continue;
        find(found, from, to, first, end, work_.pairs());
        const std::int64_t keys = weights_.key * static_cast<std::int64_t>(found.keys.size());
        const std::int64_t rows = found.cost + keys;
        if (found.keys.empty() || rows > keys || load_[index(to)] + found.pairs > most) continue;
        give(found, from);
      }
    }
  }

  /// Gives the columns whose pairs cost the least to some rank below the average. False if none fits.
  bool move_columns(int from, std::int64_t mean) {
    constexpr std::size_t most_strangers = 64;  // that own none of the columns
    const columns& of = columns_[index(from)];
    std::vector<int> candidates;
    for (int to = 0; to < work_.world(); ++to) {
      if (to != from && load_[index(to)] < mean) candidates.push_back(to);
    }
    const auto by_load = [&](int a, int b) {
      return load_[index(a)] != load_[index(b)] ? load_[index(a)] < load_[index(b)] : a < b;
    };
    std::sort(candidates.begin(), candidates.end(), by_load);
    offer best, found;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const int to = candidates[i];
      // A little more than what is missing: columns are coarse.
      const std::int64_t amount = (std::min)(load_[index(from)] - mean, mean - load_[index(to)]) + mean / 50;
      const auto consider = [&](std::int64_t first, std::int64_t end) {
        find(found, from, to, first, end, amount);
        if (found.keys.empty()) return;
        if (best.to == schedule::no_rank || is_less_ratio(found.cost, found.pairs, best.cost, best.pairs)) {
          std::swap(best, found);
        }
      };
      consider((std::max)(of.first, first_query(to)), (std::min)(of.end, first_query(to + 1)));
      if (i < most_strangers) consider(of.first, of.end);
    }
    if (best.to == schedule::no_rank) return false;
    give(best, from);
    return true;
  }

  void give(const offer& found, int from) {
    for (const std::int64_t k : found.keys) {
      if (work_.owner(k) != from) sent_[index(work_.owner(k))] -= weights_.key;
      for (std::int64_t q = first_query(from); q < first_query(from + 1); ++q) {
        if (computes(from, q, k)) move(from, found.to, q, k);
      }
    }
  }

  /// Gives single pairs of chunks to the rank with the least work. False if none fits.
  bool move_pairs(int from, std::int64_t mean) {
    const int to = static_cast<int>(std::min_element(load_.begin(), load_.end()) - load_.begin());
    const std::int64_t amount = (std::min)(load_[index(from)] - mean, mean - load_[index(to)]) + mean / 33;
    const columns& of = columns_[index(from)];
    for (std::int64_t k = of.first; k < of.end; ++k) {
      std::int64_t moved = 0;
      for (std::int64_t q = first_query(from + 1) - 1; q >= first_query(from); --q) {
        if (!computes(from, q, k) || moved + work_.pairs(q, k) > amount) continue;
        moved += work_.pairs(q, k);
        move(from, to, q, k);
      }
      if (moved > 0) return true;
    }
    return false;
  }

  void move(int from, int to, std::int64_t query, std::int64_t key) {
    const std::int64_t pairs = work_.pairs(query, key);
    who_[static_cast<std::size_t>(query)][static_cast<std::size_t>(key - work_.first_key(query))] = to;
    column(from, key) -= pairs;
    load_[index(from)] -= pairs;
    load_[index(to)] += pairs;
    if (work_.owner(key) != to && has_key_[index(to, key)] == 0) sent_[index(work_.owner(key))] += weights_.key;
    has_key_[index(to, key)] = 1;
    has_query_[index(to, query)] = 1;
  }

  /// True if this rank computes all visible pairs of these queries and keys, so that they may be one tile of it.
  [[nodiscard]] bool is_of_rank(int rank, std::int64_t query, const std::vector<std::int64_t>& keys) const {
    return std::all_of(keys.begin(), keys.end(),
                       [&](std::int64_t k) { return work_.pairs(query, k) == 0 || who(query, k) == rank; });
  }

  /// Adds the tiles that rank `rank` computes for the queries of `other`: those with keys that it owns, or the rest.
  void add_tiles(std::vector<assignment::product>& all, int rank, int other, bool with_own_keys) const {
    struct tile {
      std::vector<std::int64_t> queries;
      std::vector<std::int64_t> keys;
    };
    std::vector<tile> tiles;
    std::vector<std::int64_t> keys, united, added;
    for (std::int64_t q = first_query(other); q < first_query(other + 1); ++q) {
      keys.clear();
      for (std::int64_t k = work_.first_key(q); k < work_.end_key(q); ++k) {
        if (computes(rank, q, k) && (work_.owner(k) == rank) == with_own_keys) keys.push_back(k);
      }
      if (keys.empty()) continue;
      const auto fits = [&](const tile& into) {
        united.clear();
        std::set_union(into.keys.begin(), into.keys.end(), keys.begin(), keys.end(), std::back_inserter(united));
        if (united.size() > keys.size() && !is_of_rank(rank, q, united)) return false;
        if (united.size() == into.keys.size()) return true;
        added.clear();
        std::set_difference(keys.begin(), keys.end(), into.keys.begin(), into.keys.end(), std::back_inserter(added));
        return std::all_of(into.queries.begin(), into.queries.end(),
                           [&](std::int64_t query) { return is_of_rank(rank, query, added); });
      };
      const auto into = std::find_if(tiles.rbegin(), tiles.rend(), fits);
      if (into == tiles.rend()) {
        tiles.push_back({{q}, keys});
      } else {
        into->queries.push_back(q);
        into->keys = united;
      }
    }
    const auto block_of = [&](schedule::side side, std::int64_t chunk) {
      return schedule::block{side, static_cast<std::uint16_t>(chunk % work_.chunks()), work_.owner(chunk), 0};
    };
    // Keys of other ranks come in parts of at most two shards, so that few are in memory at a time.
    const std::size_t most_keys = with_own_keys ? count_ : 2 * static_cast<std::size_t>(work_.chunks());
    for (const tile& one : tiles) {
      for (std::size_t first = 0; first < one.keys.size(); first += most_keys) {
        assignment::product made;
        const std::size_t end = (std::min)(one.keys.size(), first + most_keys);
        for (const std::int64_t q : one.queries) {
          const bool sees = std::any_of(one.keys.begin() + static_cast<std::ptrdiff_t>(first),
                                        one.keys.begin() + static_cast<std::ptrdiff_t>(end),
                                        [&](std::int64_t k) { return work_.pairs(q, k) > 0; });
          if (sees) made.queries.push_back(block_of(schedule::side::query, q));
        }
        for (std::size_t i = first; i < end; ++i) made.keys.push_back(block_of(schedule::side::key, one.keys[i]));
        all.push_back(std::move(made));
      }
    }
  }

  const document_work& work_;
  token_weights weights_;
  std::size_t world_;
  std::size_t count_;  // of chunks
  std::vector<std::int64_t> load_;
  std::vector<std::int64_t> sent_;  // the weight of the keys that each rank sends
  std::vector<columns> columns_;
  std::vector<char> has_key_;  // at index(rank, chunk): got from another rank for moved work
  std::vector<char> has_query_;
  std::vector<std::vector<int>> who_;  // computes a chunk of queries with each chunk of keys that it sees
};

}  // namespace orrery::detail
