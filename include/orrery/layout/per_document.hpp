// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "orrery/detail/integer_range.hpp"
#include "orrery/detail/number_digest.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/schedule/list.hpp"

namespace orrery {

/// Packed documents, each of which is dealt to all ranks by a layout of its own: with `zigzag` every rank has the same
/// work in each document under `documents` and `causal`, and so in all of them, whatever their lengths.
///
///     const orrery::per_document<orrery::zigzag> layout{lengths};  // of type std::vector<int>, say
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{
///         world, shape, orrery::documents{lengths} & orrery::causal{}, layout};
///
/// With two documents of 8 tokens each on two ranks, rank 0 has the tokens 0, 1, 6, 7 and 8, 9, 14, 15. What is behind
/// the last document is padding, and dealt as one more document.
///
/// A shard has as many segments as its documents together. Its chunks are those of the inner layout in each document;
/// with more than 64 of them, whole shards of the inner layout, if it gives such. Operators take at most 32768 chunks
/// of all ranks together: with more than 32 documents as many documents times ranks. A document of fewer tokens than
/// ranks (of 2 * ranks, with `zigzag`) is not dealt evenly.
///
/// Holds where documents begin, 8 bytes for each; copies copy them. The name has the number of documents and a digest
/// of their lengths. Source: TransformerEngine's and Megatron-LM's context parallelism with packed sequences
/// (github.com/NVIDIA/TransformerEngine, thd format).
template <layout Layout = zigzag>
class per_document {
 public:
  /// `lengths` are the tokens of each document, in order: each at least 1, together at most the sequence's length,
  /// which an operator checks. Throws `std::invalid_argument`.
  template <detail::integer_range Lengths>
  constexpr explicit per_document(const Lengths& lengths, const Layout& of_each) : each_(of_each) {
    begins_.push_back(0);
    for (const auto length : lengths) {
      if (std::cmp_less(length, 1) || std::cmp_greater(length, most_tokens - begins_.back()))
        refuse("lengths", begins_.size() - 1, std::to_string(length), "at least 1 token, and less than 2^62 in all");
      append(begins_.back() + static_cast<std::int64_t>(length));
    }
    if (begins_.size() == 1) throw std::invalid_argument{"orrery: per_document: there are no documents; expected one"};
  }
  template <detail::integer_range Lengths>
  constexpr explicit per_document(const Lengths& lengths) : per_document{lengths, Layout{}} {}

  /// Document i is the tokens from `cu_seqlens[i]` to before `cu_seqlens[i + 1]`: increasing, from 0 on, one number
  /// more than documents. Throws `std::invalid_argument`.
  template <detail::integer_range Positions>
  [[nodiscard]] static constexpr per_document from_cu_seqlens(const Positions& cu_seqlens, const Layout& of_each) {
    schedule::list<std::int64_t> lengths;
    int i = 0;
    std::int64_t last = 0;
    for (const auto position : cu_seqlens) {
      if (i == 0 ? position != 0 : std::cmp_less_equal(position, last) || std::cmp_greater(position, most_tokens)) {
        refuse("cu_seqlens", i, std::to_string(position),
               i == 0 ? "0" : "more than the number before it, and at most 2^62");
      }
      if (i > 0) lengths.push_back(static_cast<std::int64_t>(position) - last);
      last = static_cast<std::int64_t>(position);
      ++i;
    }
    return per_document{lengths, of_each};
  }
  template <detail::integer_range Positions>
  [[nodiscard]] static constexpr per_document from_cu_seqlens(const Positions& cu_seqlens) {
    return from_cu_seqlens(cu_seqlens, Layout{});
  }

  [[nodiscard]] constexpr int documents() const noexcept { return begins_.size() - 1; }

  /// Throws `std::invalid_argument` if the documents are longer than the sequence.
  [[nodiscard]] constexpr int chunks(int world, std::int64_t length) const {
    if (length < begins_.back()) {
      throw std::invalid_argument{"the lengths of its documents add up to " + std::to_string(begins_.back()) +
                                  ", but the sequence has " + std::to_string(length) + " tokens"};
    }
    const std::int64_t all = std::int64_t{parts(length)} * chunks_of_each(world, length);
    constexpr int most = (std::numeric_limits<int>::max)();
    return all < most ? static_cast<int>(all) : most;
  }

  [[nodiscard]] constexpr segments chunk(int rank, int chunk, int world, std::int64_t length) const {
    const int of_each = chunks_of_each(world, length);
    const int document = chunk / of_each;
    const std::int64_t begin = begins_[document];
    const std::int64_t tokens = (document < documents() ? begins_[document + 1] : length) - begin;
    segments within;
    if constexpr (layout_of_chunks<Layout>) {
      if (of_each > 1 || !has_shards()) {
        if (chunk % of_each < each_.chunks(world, tokens)) within = each_.chunk(rank, chunk % of_each, world, tokens);
        return moved(within, begin);
      }
    }
    if constexpr (layout_of_shards<Layout>) within = each_.shard(rank, world, tokens);
    return moved(within, begin);
  }

  /// "per_document<zigzag>(2 documents, 3e12ab...)".
  [[nodiscard]] std::string name() const {
    return "per_document<" + each_.name() + ">(" + std::to_string(documents()) +
           (documents() == 1 ? " document, " : " documents, ") + detail::digest_text(begins_) + ")";
  }

  constexpr bool operator==(const per_document& other) const
      requires(std::is_empty_v<Layout> || std::equality_comparable<Layout>) {
    if constexpr (!std::is_empty_v<Layout>) {
      if (!(each_ == other.each_)) return false;
    }
    return begins_ == other.begins_;
  }

 private:
  static constexpr std::int64_t most_tokens = std::int64_t{1} << 62;
  static constexpr int most_fine_chunks = 64;

  [[noreturn]] static constexpr void refuse(const char* name, int i, const std::string& is,
                                            const std::string& expected) {
    throw std::invalid_argument{std::string{"orrery: per_document: "} + name + "[" + std::to_string(i) + "] is " + is +
                                ", expected " + expected};
  }

  constexpr void append(std::int64_t begin) {
    if (begins_.size() > (1 << 29)) throw std::invalid_argument{"orrery: per_document: more than 2^29 documents"};
    begins_.push_back(begin);
  }

  /// Documents, and the padding.
  [[nodiscard]] constexpr int parts(std::int64_t length) const {
    return documents() + (length > begins_.back() ? 1 : 0);
  }

  [[nodiscard]] constexpr bool has_shards() const {
    if constexpr (requires { each_.has_whole_shards(); }) {
      return each_.has_whole_shards();
    } else {
      return layout_of_shards<Layout>;
    }
  }

  /// How many chunks each document has.
  [[nodiscard]] constexpr int chunks_of_each(int world, std::int64_t length) const {
    if constexpr (layout_of_chunks<Layout>) {
      int most = 1;
      for (int i = 0; i < parts(length) && (!has_shards() || i < most_fine_chunks); ++i) {
        const int own = each_.chunks(world, (i < documents() ? begins_[i + 1] : length) - begins_[i]);
        most = own > most ? own : most;
      }
      return has_shards() && std::int64_t{most} * parts(length) > most_fine_chunks ? 1 : most;
    } else {
      return 1;
    }
  }

  [[nodiscard]] static constexpr segments moved(const segments& some, std::int64_t begin) {
    segments to;
    for (segment piece : some) {
      piece.begin += begin;
      to.add(piece);
    }
    return to;
  }

  Layout each_;
  schedule::list<std::int64_t> begins_;  // of documents, and the end of the last one
};

}  // namespace orrery
