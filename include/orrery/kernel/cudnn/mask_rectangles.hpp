// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/attention/tile.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// A part of the pairs of a query block and a key block that cuDNN computes in one call: tokens of the blocks, in their
/// local order. Every query sees every key; or, if `causal`, query i sees the keys at most at i + (keys - queries).
struct cudnn_part {
  std::int64_t first_query = 0;
  std::int64_t queries = 0;
  std::int64_t first_key = 0;
  std::int64_t keys = 0;
  bool causal = false;

  constexpr bool operator==(const cudnn_part&) const = default;
};

/// The most parts of one pair of blocks. Two contiguous segments a side need four.
inline constexpr std::size_t most_cudnn_parts = 8;

/// A mask that does not say that it is a diagonal.
template <mask Mask>
struct mask_without_diagonal {
  const Mask& of;

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const { return of.visible(query, key); }
  [[nodiscard]] visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                    std::int64_t key_last) const {
    return of.classify(query_first, query_last, key_first, key_last);
  }
  [[nodiscard]] std::string name() const { return of.name(); }
};

/// What the mask lets the queries at these positions see of the keys at those, as parts, none of which has a query that
/// sees none of its keys; a pair of tokens that is visible is in exactly one part.
///
/// Under a `diagonal_mask` the keys that a query sees are the block's first ones, as many as are not beyond the
/// diagonal; where that number stays the same from query to query the part is a rectangle, and where it grows by one it
/// is causal. So shards of any layout are causal parts where positions on both sides advance alike: all pieces of
/// `contiguous` and `zigzag`, and `striped<1>`. Of other masks, what `classify` calls `all` or `none`, of the blocks or
/// of their segments.
///
/// Plan time only; cost: a step for each query. Throws `std::invalid_argument` if cuDNN cannot express the mask there,
/// or if a mask is not what its `diagonal()` says.
template <mask Mask>
[[nodiscard]] std::vector<cudnn_part> cudnn_parts_of(const segments& queries, const segments& keys, const Mask& mask,
                                                     const std::string& kernel_name) {
  if constexpr (diagonal_mask<Mask>) {
    if (!is_diagonal(mask)) return cudnn_parts_of(queries, keys, mask_without_diagonal<Mask>{mask}, kernel_name);
  }
  std::vector<cudnn_part> parts;
  const std::int64_t query_count = queries.tokens();
  const std::int64_t key_count = keys.tokens();
  if (query_count == 0 || key_count == 0) return parts;
  const auto between = [&](std::int64_t first_query, std::int64_t end_query, std::int64_t first_key,
                           std::int64_t end_key) {
    return "between queries at positions " + std::to_string(queries.position(first_query)) + " to " +
           std::to_string(queries.position(end_query - 1)) + " and keys at " +
           std::to_string(keys.position(first_key)) + " to " + std::to_string(keys.position(end_key - 1));
  };
  const auto seen_of = [&](std::int64_t first_query, std::int64_t end_query, std::int64_t first_key,
                           std::int64_t end_key) {
    return mask.classify(queries.position(first_query), queries.position(end_query - 1), keys.position(first_key),
                         keys.position(end_key - 1));
  };
  switch (seen_of(0, query_count, 0, key_count)) {
    case visibility::none:
      return parts;
    case visibility::all:
      return {{0, query_count, 0, key_count, false}};
    case visibility::some:
      break;
  }

  if constexpr (diagonal_mask<Mask>) {
    // The number of keys that the query sees; queries are asked in increasing order.
    std::int64_t seen = 0;
    const auto seen_by = [&](std::int64_t query) {
      const std::int64_t position = queries.position(query);
      while (seen < key_count && keys.position(seen) - position <= mask.diagonal()) ++seen;
      const bool first = mask.visible(position, keys.position(0));
      const bool last = seen > 0 && mask.visible(position, keys.position(seen - 1));
      const bool next = seen < key_count && mask.visible(position, keys.position(seen));
      if (first != (seen > 0) || last != (seen > 0) || next) {
        throw std::invalid_argument{"orrery: mask " + mask.name() + " has the diagonal " +
                                    std::to_string(mask.diagonal()) + ", but lets the query at position " +
                                    std::to_string(position) +
                                    " see other keys than those up to it; a mask that is not only a diagonal must not "
                                    "have the member diagonal()"};
      }
      return seen;
    };
    // Consecutive queries, [first, query), which see `before`, ... , `seen` keys.
    std::int64_t first = 0;
    std::int64_t begin = seen_by(0);
    std::int64_t before = begin;
    std::int64_t growth = -1;  // from query to query; not known yet of one query
    const auto end_part = [&](std::int64_t query) {
      if (before > 0) parts.push_back({first, query - first, 0, before, growth == 1});
      if (parts.size() > most_cudnn_parts) {
        throw std::invalid_argument{"orrery: mask " + mask.name() + " " + between(0, query_count, 0, key_count) +
                                    " is not made of a few rectangles and triangles, which are all that kernel " +
                                    kernel_name +
                                    " has; orrery::device_flash has every mask, and layouts contiguous, zigzag and "
                                    "striped<1> suit this one"};
      }
    };
    for (std::int64_t query = 1; query < query_count; ++query) {
      const std::int64_t now = seen_by(query);
      const std::int64_t grows = now - before;
      const bool goes_on = growth < 0 ? grows == 0 || (grows == 1 && begin > 0) : grows == growth;
      if (goes_on) {
        growth = grows;
      } else {
        end_part(query);
        first = query;
        begin = now;
        growth = -1;
      }
      before = now;
    }
    end_part(query_count);
  } else {
    std::int64_t first_query = 0;
    for (const segment& of_queries : queries) {
      std::int64_t first_key = 0;
      for (const segment& of_keys : keys) {
        switch (seen_of(first_query, first_query + of_queries.count, first_key, first_key + of_keys.count)) {
          case visibility::none:
            break;
          case visibility::all:
            parts.push_back({first_query, of_queries.count, first_key, of_keys.count, false});
            break;
          case visibility::some:
            throw std::invalid_argument{
                "orrery: mask " + mask.name() + " lets only some pairs be seen " +
                between(first_query, first_query + of_queries.count, first_key, first_key + of_keys.count) +
                ", of which kernel " + kernel_name +
                " only knows full and causal masks; orrery::device_flash has every mask"};
        }
        first_key += of_keys.count;
      }
      first_query += of_queries.count;
    }
  }
  return parts;
}

/// Query heads of a block and the key heads that they read, as many of them for each.
struct cudnn_heads {
  std::int64_t first_query_head = 0;
  std::int64_t query_heads = 0;
  std::int64_t first_key_head = 0;
  std::int64_t key_heads = 0;

  constexpr bool operator==(const cudnn_heads&) const = default;
};

/// Calls visit(heads) for groups of a block's heads in which each key head has as many query heads, which is what cuDNN
/// expects: all of them at once, unless a slice of the model's heads begins or ends within a key head's query heads.
template <class Visit>
void for_cudnn_heads(const head_map& map, std::int64_t query_heads, const Visit& visit) {
  const auto end_of = [&](std::int64_t head) {  // of the query heads that read the same key head
    const std::int64_t group = map.queries_per_key_head;
    const std::int64_t end = ((map.first_query_head + head) / group + 1) * group - map.first_query_head;
    return end < query_heads ? end : query_heads;
  };
  for (std::int64_t first = 0; first < query_heads;) {
    cudnn_heads heads{first, end_of(first) - first, map.key_head(first), 1};
    const std::int64_t of_each = heads.query_heads;
    for (std::int64_t next = first + of_each; next < query_heads && end_of(next) - next == of_each; next += of_each) {
      heads.query_heads += of_each;
      ++heads.key_heads;
    }
    visit(heads);
    first += heads.query_heads;
  }
}

}  // namespace orrery::detail
