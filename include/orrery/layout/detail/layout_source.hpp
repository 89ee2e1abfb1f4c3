// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <span>
#include <string>

#include "orrery/layout/detail/check_shards.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/layout/token_positions.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"

namespace orrery::detail {

/// Part `index` of `parts` parts of some tokens, in their order, whose sizes differ by one token at most; tokens that
/// come in runs are cut between runs. The parts are all of the tokens; a part may be empty.
[[nodiscard]] constexpr segments cut(const segments& tokens, int parts, int index) {
  const std::int64_t all = tokens.tokens();
  const auto begin_of = [&](int part) {
    const std::int64_t token = begin_of_piece(part, parts, all);
    std::int64_t before = 0;
    for (const segment& piece : tokens) {
      const std::int64_t within = token - before;
      if (within < piece.count) return piece.run < piece.count ? before + within / piece.run * piece.run : token;
      before += piece.count;
    }
    return all;
  };
  const std::int64_t first = begin_of(index);
  const std::int64_t last = begin_of(index + 1);
  segments part;
  std::int64_t before = 0;
  for (const segment& piece : tokens) {
    const std::int64_t from = first > before ? first - before : 0;
    const std::int64_t to = last - before < piece.count ? last - before : piece.count;
    if (from < to) {
      const std::int64_t count = to - from;
      part.add(piece.run < piece.count ? segment{piece.position(from), count, piece.run, piece.stride}
                                       : segment{piece.begin + from, count, count, count});
    }
    before += piece.count;
  }
  return part;
}

/// Some layout, which it refers to: what an operator asks of it, whatever its type. A layout that holds another one
/// says by `has_whole_shards()` whether that has shard(rank, world, length).
class layout_source {
 public:
  template <layout Layout>
  explicit layout_source(const Layout& l)
      : self_{&l}, name_{[](const void* self) -> std::string { return static_cast<const Layout*>(self)->name(); }} {
    if constexpr (layout_of_shards<Layout>) {
      shard_ = [](const void* self, int rank, int world, std::int64_t length) {
        return static_cast<const Layout*>(self)->shard(rank, world, length);
      };
    }
    if constexpr (layout_of_chunks<Layout>) {
      chunks_ = [](const void* self, int world, std::int64_t length) -> int {
        return static_cast<const Layout*>(self)->chunks(world, length);
      };
      chunk_ = [](const void* self, int rank, int chunk, int world, std::int64_t length) {
        return static_cast<const Layout*>(self)->chunk(rank, chunk, world, length);
      };
    }
    if constexpr (requires { l.has_whole_shards(); }) {
      if (!l.has_whole_shards()) shard_ = nullptr;
    }
    if constexpr (requires { l.asks_for_chunks(); }) asks_for_chunks_ = l.asks_for_chunks();
  }

  [[nodiscard]] std::string name() const { return name_(self_); }
  /// True if it is there to cut shards into chunks; else an operator may leave its shards whole.
  [[nodiscard]] bool asks_for_chunks() const noexcept { return asks_for_chunks_; }

  /// True if it can be asked for whole shards, each of at most two segments; else each has several chunks.
  [[nodiscard]] bool has_whole_shards() const noexcept { return shard_ != nullptr; }
  /// Sets into how many chunks it cuts each shard itself: 1 if it does not. Returns as `deal` does.
  [[nodiscard]] std::string count_chunks(int world, std::int64_t length, int& chunks) const try {
    chunks = chunks_ == nullptr ? 1 : chunks_(self_, world, length);
    return chunks < 1 || chunks > most_chunks ? wrong_number(chunks) : "";
  } catch (const std::bad_alloc&) {
    throw;  // says nothing of the layout
  } catch (const std::exception& e) {
    return std::string{"threw: "} + e.what();
  }

  /// Writes the shards of all ranks, in `chunks` chunks each: chunk c of rank r at [r * chunks + c].
  ///
  /// With 1 chunk these are the layout's whole shards. With more they are its own chunks, each cut evenly if `chunks`
  /// is a multiple of their number, or else followed by empty ones.
  ///
  /// Returns an empty string, or what is wrong with the layout, as a predicate of it: if a position is not in exactly
  /// one chunk, if a shard's positions do not ascend, if its chunks are not the tokens of its shard, if there are fewer
  /// than 1 or more than `schedule::most_chunks` a shard or `schedule::most_chunks_of_world` in all, or if it throws.
  [[nodiscard]] std::string deal(int world, std::int64_t length, int chunks, list<segments>& shards) const try {
    int own = 1;
    if (std::string wrong = count_chunks(world, length, own); !wrong.empty()) return wrong;
    if (chunks < 1 || chunks > most_chunks) return wrong_number(chunks);
    if (chunks > 1 && std::int64_t{world} * chunks > most_chunks_of_world) {
      return "cuts each shard into " + std::to_string(chunks) + " chunks, and those of all ranks into " +
             std::to_string(std::int64_t{world} * chunks) + ", expected at most " +
             std::to_string(most_chunks_of_world) + "; use fewer ranks, or longer documents";
    }
    const bool whole = shard_ != nullptr && (chunks == 1 || chunk_ == nullptr);
    if (!whole && chunks < own) {
      return "has shards of " + std::to_string(own) + " chunks, which were asked for in " + std::to_string(chunks) +
             "; give it shard(rank, world, length), or ask for as many chunks";
    }
    for (int rank = 0; rank < world; ++rank) {
      if (whole) {
        const segments shard = shard_(self_, rank, world, length);
        for (int c = 0; c < chunks; ++c) shards.push_back(chunks == 1 ? shard : cut(shard, chunks, c));
        continue;
      }
      const int parts = chunks % own == 0 ? chunks / own : 1;
      for (int c = 0; c < chunks; ++c) {
        if (c / parts >= own) {
          shards.push_back({});
          continue;
        }
        const segments chunk = chunk_(self_, rank, c / parts, world, length);
        shards.push_back(parts == 1 ? chunk : cut(chunk, parts, c % parts));
      }
    }
    const shard_fault wrong = check_shards(shards, length, chunks);
    if (wrong.found != shard_fault::kind::none) return wrong.message();
    return whole || shard_ == nullptr ? "" : differs_from_whole(world, length, chunks, shards);
  } catch (const std::bad_alloc&) {
    throw;  // says nothing of the layout
  } catch (const std::exception& e) {
    return std::string{"threw: "} + e.what();
  }

 private:
  [[nodiscard]] static std::string wrong_number(int chunks) {
    return "cuts each shard into " + std::to_string(chunks) + " chunks, expected 1 to " + std::to_string(most_chunks);
  }

  /// Compares the chunks with the whole shards; both ascend.
  [[nodiscard]] std::string differs_from_whole(int world, std::int64_t length, int chunks,
                                               const list<segments>& shards) const {
    for (int rank = 0; rank < world; ++rank) {
      const token_positions whole{shard_(self_, rank, world, length)};
      const token_positions cut_up{std::span{shards.begin() + rank * chunks, static_cast<std::size_t>(chunks)}};
      const bool same_size = whole.size() == cut_up.size();
      // Where either has a piece that begins or ends; between these, both are regular.
      std::int64_t token = 0;
      const auto differ = [&](std::int64_t t) { return t < whole.size() && whole[t] != cut_up[t]; };
      bool same = same_size;
      for (const token_positions* one : {&whole, &cut_up}) {
        token = 0;
        for (const segment& piece : one->segments()) {
          for (const std::int64_t t :
               {std::int64_t{0}, piece.run - 1, piece.run, 2 * piece.run - 1, 2 * piece.run, piece.count - 1})
            same = same && (t < 0 || t >= piece.count || !differ(token + t));
          token += piece.count;
        }
      }
      if (!same) {
        return "cuts the shard of rank " + std::to_string(rank) + ", which has " + std::to_string(whole.size()) +
               " tokens, into chunks that are not its tokens in their order; let chunk(...) and shard(...) agree";
      }
    }
    return "";
  }

  const void* self_;
  bool asks_for_chunks_ = false;
  std::string (*name_)(const void*);
  segments (*shard_)(const void*, int rank, int world, std::int64_t length) = nullptr;
  int (*chunks_)(const void*, int world, std::int64_t length) = nullptr;
  segments (*chunk_)(const void*, int rank, int chunk, int world, std::int64_t length) = nullptr;
};

}  // namespace orrery::detail
