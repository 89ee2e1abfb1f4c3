// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

#include "orrery/detail/integer_range.hpp"
#include "orrery/mask/detail/document_mask.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"  // IWYU pragma: export
#include "orrery/schedule/list.hpp"

namespace orrery {

/// Packed documents: one sequence that holds documents of any lengths one after the other, of which each sees itself
/// and nothing else. What is behind the last document is padding: it sees nothing and is seen by nothing.
///
///     const orrery::documents batch{lengths};                              // of type std::vector<int>, say
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{
///         world, shape, batch & orrery::causal{} & orrery::window{.left = 4095}, orrery::zigzag{}};
///
/// Lengths may be given as `cu_seqlens`, where documents begin and the last one ends; and as those of queries and keys
/// apart, where documents have as many of both but not equally many tokens of each:
///
///     const auto batch = orrery::documents::from_cu_seqlens(cu_seqlens_q, cu_seqlens_k);
///
/// **`&`.** Positions of `causal`, `window` and `prefix` count within each document. With as many queries as keys that
/// is the same as counting in the sequence (but for `prefix`). Where a document has more keys than queries, or fewer,
/// its last query is beside its last key (bottom-right alignment), as in FlashAttention's `flash_attn_varlen_func`;
/// with `batch.top_left()` its first query is beside its first key. Other masks, as those of your own, are asked for
/// positions in the sequence; one that has `static constexpr bool counts_in_documents = true` counts in documents,
/// where queries of a document with more queries than keys may have negative positions. The order of operands does not
/// matter. In an intersection of several `documents` a mask goes inside of one of them.
///
/// Holds the lengths: 8 bytes for each document, 16 if those of queries and keys are apart; copies copy them. `visible`
/// takes a binary search, `classify` four, `keys_of` of one query one. The name has the number of documents and a
/// digest of their lengths. Kernels on a device take a view (see `mask_with_table`).
///
/// Source: FlashAttention's variable lengths (github.com/Dao-AILab/flash-attention).
class documents : public detail::document_mask<full, schedule::list<std::int64_t>> {
 public:
  /// `lengths` are the tokens of each document, in order: each at least 1, together at most the sequence's length,
  /// which an operator checks. Throws `std::invalid_argument`.
  template <detail::integer_range Lengths>
  constexpr explicit documents(const Lengths& lengths) : documents{table{begins_of("lengths", lengths)}} {}

  /// Document i has `query_lengths[i]` queries and `key_lengths[i]` keys. Throws `std::invalid_argument`.
  template <detail::integer_range QueryLengths, detail::integer_range KeyLengths>
  constexpr documents(const QueryLengths& query_lengths, const KeyLengths& key_lengths)
      : documents{table{"query_lengths", begins_of("query_lengths", query_lengths), "key_lengths",
                        begins_of("key_lengths", key_lengths)}} {}

  /// Document i is the tokens from `cu_seqlens[i]` to before `cu_seqlens[i + 1]`: increasing, from 0 on, one number
  /// more than documents. Throws `std::invalid_argument`.
  template <detail::integer_range Positions>
  [[nodiscard]] static constexpr documents from_cu_seqlens(const Positions& cu_seqlens) {
    return documents{table{checked("cu_seqlens", cu_seqlens)}};
  }
  /// The same of queries and keys apart.
  template <detail::integer_range QueryPositions, detail::integer_range KeyPositions>
  [[nodiscard]] static constexpr documents from_cu_seqlens(const QueryPositions& cu_seqlens_q,
                                                           const KeyPositions& cu_seqlens_k) {
    return documents{table{"cu_seqlens_q", checked("cu_seqlens_q", cu_seqlens_q), "cu_seqlens_k",
                           checked("cu_seqlens_k", cu_seqlens_k)}};
  }

  constexpr bool operator==(const documents&) const = default;

 private:
  using list = schedule::list<std::int64_t>;

  static constexpr std::int64_t most_tokens = std::int64_t{1} << 62;
  static constexpr std::int64_t most_documents = std::int64_t{1} << 29;

  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: documents: " + why}; }

  /// Where documents begin, as `document_mask` has it.
  struct table {
    list begins;
    int count;
    bool apart = false;

    constexpr explicit table(list of_both) : begins(std::move(of_both)), count{begins.size() - 1} {}
    constexpr table(const char* query_name, list of_queries, const char* key_name, const list& of_keys)
        : begins(std::move(of_queries)), count{begins.size() - 1}, apart{!(begins == of_keys)} {
      if (begins.size() != of_keys.size()) {
        refuse(std::string{query_name} + " has " + std::to_string(count) + " documents and " + key_name + " has " +
               std::to_string(of_keys.size() - 1) + ", expected as many: each has queries and keys");
      }
      if (!apart) return;
      begins.reserve(2 * begins.size());
      for (const std::int64_t begin : of_keys) begins.push_back(begin);
    }
  };

  constexpr explicit documents(table of) : document_mask{std::move(of.begins), of.count, of.apart, false, full{}} {}

  /// A list that has room for `count` documents.
  template <class Range>
  [[nodiscard]] static constexpr list room_for(const char* name, const Range& range, const char* expected) {
    const auto size = std::size(range);
    if (std::cmp_less(size, 1) || std::cmp_greater(size, most_documents)) {
      refuse(std::string{name} + " has " + std::to_string(size) + " numbers, expected " + expected);
    }
    list begins;
    begins.reserve(static_cast<int>(size) + 1);
    return begins;
  }

  template <class Lengths>
  [[nodiscard]] static constexpr list begins_of(const char* name, const Lengths& lengths) {
    list begins = room_for(name, lengths, "one for each document, of which there is at least 1");
    begins.push_back(0);
    for (const auto length : lengths) {
      const auto element = [&] { return std::string{name} + "[" + std::to_string(begins.size() - 1) + "]"; };
      if (std::cmp_less(length, 1)) {
        refuse(element() + " is " + std::to_string(length) +
               ", expected at least 1 token; leave out documents without tokens");
      }
      const std::int64_t begin = begins.back();
      if (std::cmp_greater(length, most_tokens - begin)) {
        refuse(element() + " is " + std::to_string(length) + ", too long: with those before it more than 2^62 tokens");
      }
      begins.push_back(begin + static_cast<std::int64_t>(length));
    }
    return begins;
  }

  template <class Positions>
  [[nodiscard]] static constexpr list checked(const char* name, const Positions& positions) {
    list begins = room_for(name, positions, "0 and the end of each document, of which there is at least 1");
    for (const auto position : positions) {
      const int i = begins.size();
      const auto element = [&] { return std::string{name} + "[" + std::to_string(i) + "]"; };
      if (i == 0 && position != 0) {
        refuse(element() + " is " + std::to_string(position) + ", expected 0, where the first document begins");
      }
      if (i > 0 && std::cmp_less_equal(position, begins.back())) {
        const bool overlaps = std::cmp_less(position, begins.back());
        refuse(element() + " is " + std::to_string(position) + " after " + std::to_string(begins.back()) +
               (overlaps ? ", expected increasing positions; documents must not overlap"
                         : ", a document without tokens; leave it out"));
      }
      if (std::cmp_greater(position, most_tokens)) {
        refuse(element() + " is " + std::to_string(position) + ", expected at most 2^62");
      }
      begins.push_back(static_cast<std::int64_t>(position));
    }
    if (begins.size() < 2)
      refuse(std::string{name} + " has only its first 0, expected the end of a document behind it");
    return begins;
  }
};

}  // namespace orrery
