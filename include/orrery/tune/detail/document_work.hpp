// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/layout/layout.hpp"
#include "orrery/schedule/block.hpp"

namespace orrery::detail {

/// What a token of a block weighs on the wire.
struct token_weights {
  std::int64_t query = 1;
  std::int64_t key = 2;
  std::int64_t partial = 1;
};

/// Throws `std::invalid_argument` if an argument of `pack` is out of range.
inline void check_pack(std::span<const std::int64_t> lengths, int world, std::int64_t length, int chunks, int tolerance,
                       const token_weights& weights) {
  const auto refuse = [](const std::string& what, std::int64_t value, const std::string& expected) {
    throw std::invalid_argument{"orrery: pack: " + what + " is " + std::to_string(value) + ", expected " + expected};
  };
  constexpr std::int64_t most_ranks = 1 << 15;
  constexpr std::int64_t most_tokens = std::int64_t{1} << 31;  // so that pairs can be counted
  if (world < 1 || world > most_ranks) refuse("world", world, "1 to " + std::to_string(most_ranks));
  if (chunks < 1 || chunks > schedule::most_chunks)
    refuse("chunks", chunks, "1 to " + std::to_string(schedule::most_chunks));
  if (tolerance < 1000) refuse("tolerance", tolerance, "at least 1000 thousandths of the average work");
  if (weights.query < 0) refuse("query_weight", weights.query, "at least 0");
  if (weights.key < 0) refuse("key_weight", weights.key, "at least 0");
  if (weights.partial < 0) refuse("partial_weight", weights.partial, "at least 0");
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 1) refuse("the length of document " + std::to_string(i), lengths[i], "at least 1");
    if (lengths[i] > most_tokens - sum)
      refuse("the length of document " + std::to_string(i), lengths[i], "at most 2^31 tokens in all documents");
    sum += lengths[i];
  }
  if (length < 0 || length > most_tokens) refuse("length", length, "0 to 2^31");
  if (length != 0 && length < sum) {
    refuse("length", length,
           "at least the sum of the documents' lengths, " + std::to_string(sum) + ", or 0 for just that");
  }
  if (length == 0 && sum == 0) refuse("the number of documents", 0, "at least 1, or a length");
}

/// The visible pairs of packed documents by chunk: which chunks of keys each chunk of queries sees, and how many pairs.
/// Chunks are those of the layout `contiguous`, whose shards are cut evenly, numbered through all shards. Those of keys
/// that a chunk of queries sees are consecutive, from `first_key(query)` on.
class document_work {
 public:
  document_work(std::span<const std::int64_t> lengths, int world, std::int64_t length, int chunks, bool causal)
      : world_{world}, chunks_{chunks}, count_{std::int64_t{world} * chunks} {
    std::vector<std::int64_t> begin_of{0};  // of each document
    for (const std::int64_t one : lengths) begin_of.push_back(begin_of.back() + one);
    length_ = length == 0 ? begin_of.back() : length;
    // Where each chunk begins: shards are cut as a layout's whole shards are (see `layout_source`).
    std::vector<std::int64_t> begin;
    begin.reserve(static_cast<std::size_t>(count_) + 1);
    for (int rank = 0; rank < world; ++rank) {
      const std::int64_t first = begin_of_piece(rank, world, length_);
      const std::int64_t tokens = begin_of_piece(rank + 1, world, length_) - first;
      for (int chunk = 0; chunk < chunks; ++chunk) begin.push_back(first + begin_of_piece(chunk, chunks, tokens));
    }
    begin.push_back(length_);
    // The chunk of each document's first and last token.
    const std::size_t documents = lengths.size();
    std::vector<std::int64_t> first_chunk(documents), last_chunk(documents);
    std::size_t at = 0;
    for (std::size_t d = 0; d < documents; ++d) {
      while (begin[at + 1] <= begin_of[d]) ++at;
      first_chunk[d] = static_cast<std::int64_t>(at);
      while (begin[at + 1] < begin_of[d + 1]) ++at;
      last_chunk[d] = static_cast<std::int64_t>(at);
    }
    rows_.resize(static_cast<std::size_t>(count_));
    std::size_t first = 0;  // the first document that reaches into this chunk or beyond
    for (std::int64_t q = 0; q < count_; ++q) {
      row& seen = rows_[static_cast<std::size_t>(q)];
      const std::int64_t query_begin = begin[static_cast<std::size_t>(q)];
      const std::int64_t query_end = begin[static_cast<std::size_t>(q) + 1];
      while (first < documents && begin_of[first + 1] <= query_begin) ++first;
      if (first == documents || begin_of[first] >= query_end || query_begin == query_end) continue;
      std::size_t last = first;
      while (last + 1 < documents && begin_of[last + 1] < query_end) ++last;
      seen.first = first_chunk[first];
      seen.pairs.assign(static_cast<std::size_t>((causal ? q : last_chunk[last]) - seen.first + 1), 0);
      for (std::size_t d = first; d <= last; ++d) {
        const std::int64_t from = (std::max)(query_begin, begin_of[d]);
        const std::int64_t to = (std::min)(query_end, begin_of[d + 1]);
        const std::int64_t last_key = causal ? q : last_chunk[d];
        for (std::int64_t k = first_chunk[d]; k <= last_key; ++k) {
          const std::int64_t key_from = (std::max)(begin[static_cast<std::size_t>(k)], begin_of[d]);
          const std::int64_t key_to = (std::min)(begin[static_cast<std::size_t>(k) + 1], begin_of[d + 1]);
          std::int64_t& pairs = seen.pairs[static_cast<std::size_t>(k - seen.first)];
          pairs += causal && k == q ? (to - from) * (to - from + 1) / 2 : (to - from) * (key_to - key_from);
        }
      }
      for (const std::int64_t pairs : seen.pairs) pairs_ += pairs;
    }
  }

  [[nodiscard]] int world() const noexcept { return world_; }
  [[nodiscard]] int chunks() const noexcept { return chunks_; }
  [[nodiscard]] std::int64_t count() const noexcept { return count_; }
  [[nodiscard]] std::int64_t length() const noexcept { return length_; }
  [[nodiscard]] std::int64_t pairs() const noexcept { return pairs_; }

  [[nodiscard]] std::int64_t first_key(std::int64_t query) const noexcept {
    return rows_[static_cast<std::size_t>(query)].first;
  }
  /// One more than the last.
  [[nodiscard]] std::int64_t end_key(std::int64_t query) const noexcept {
    const row& seen = rows_[static_cast<std::size_t>(query)];
    return seen.first + static_cast<std::int64_t>(seen.pairs.size());
  }
  /// Visible pairs of a chunk of queries and one of keys.
  [[nodiscard]] std::int64_t pairs(std::int64_t query, std::int64_t key) const noexcept {
    const row& seen = rows_[static_cast<std::size_t>(query)];
    return key < seen.first || key >= end_key(query) ? 0 : seen.pairs[static_cast<std::size_t>(key - seen.first)];
  }
  [[nodiscard]] int owner(std::int64_t chunk) const noexcept { return static_cast<int>(chunk / chunks_); }

 private:
  struct row {
    std::int64_t first = 0;
    std::vector<std::int64_t> pairs;  // with each chunk of keys from `first` on
  };

  int world_;
  int chunks_;
  std::int64_t count_;
  std::int64_t length_ = 0;
  std::int64_t pairs_ = 0;
  std::vector<row> rows_;
};

}  // namespace orrery::detail
