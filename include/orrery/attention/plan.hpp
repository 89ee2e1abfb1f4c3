// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

#include "orrery/attention/shape.hpp"
#include "orrery/attention/sizes.hpp"
#include "orrery/attention/tile.hpp"
#include "orrery/host/plan_memory.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/layout/token_positions.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What both calls of an attention operator share on one rank.
template <class Mask>
struct attention_plan {
  attention_shape shape;  ///< completed
  std::int64_t batch;
  std::int64_t query_heads;
  std::int64_t key_heads;
  std::int64_t head_dim;
  std::int64_t value_dim;
  double scale;
  int rank;
  Mask mask;
  int chunks = 1;               ///< of each shard
  list<segments> query_shards;  ///< of all ranks; chunk c of rank r at [r * chunks + c]
  list<segments> key_shards;
  list<head_slice> slices;

  /// Makes a plan without shards, which `deal` gives it. `of_shape` must be completed.
  attention_plan(const attention_shape& of_shape, int of_rank, const Mask& of_mask, int slice_count)
      : shape{of_shape},
        batch{shape.batch},
        query_heads{shape.query_heads},
        key_heads{*shape.key_heads},
        head_dim{shape.head_dim},
        value_dim{*shape.value_dim},
        scale{*shape.scale},
        rank{of_rank},
        mask{of_mask},
        slices{head_slice::all(slice_count, query_heads, key_heads)} {}

  /// The bytes of blocks in a pass of an operator with this kernel.
  template <class Kernel>
  [[nodiscard]] attention_sizes sizes(pass p) const {
    return {shape,
            p,
            slices.size(),
            chunks,
            sizeof(typename Kernel::storage),
            sizeof(typename Kernel::accumulator),
            query_shards,
            key_shards};
  }

  /// Takes the shards of all ranks, in `chunk_count` chunks each: chunk c of rank r at [r * chunk_count + c].
  void deal(int chunk_count, list<segments> queries, list<segments> keys) {
    chunks = chunk_count;
    query_shards = static_cast<list<segments>&&>(queries);
    key_shards = static_cast<list<segments>&&>(keys);
    for (const side s : {side::query, side::key}) {
      list<std::int64_t>& first = first_tokens_[static_cast<std::size_t>(s)];
      first = list<std::int64_t>(chunks + 1);
      for (int c = 0; c < chunks; ++c) first[c + 1] = first[c] + tokens({s, static_cast<std::uint16_t>(c), rank, 0});
    }
  }

  [[nodiscard]] const head_slice& slice(const block& b) const { return slices[b.slice]; }
  [[nodiscard]] const segments& positions(const block& b) const {
    return (b.side == side::query ? query_shards : key_shards)[b.shard * chunks + b.chunk];
  }
  [[nodiscard]] std::int64_t tokens(const block& b) const { return positions(b).tokens(); }
  /// Where a chunk of the rank's own shard begins in it.
  [[nodiscard]] std::int64_t first_token(const block& own) const {
    return first_tokens_[static_cast<std::size_t>(own.side)][own.chunk];
  }
  /// Of the rank's own shard, in their local order.
  [[nodiscard]] token_positions own_positions(side s) const {
    const list<segments>& shards = s == side::query ? query_shards : key_shards;
    return token_positions{std::span{shards.begin() + rank * chunks, static_cast<std::size_t>(chunks)}};
  }
  /// Of the rank's own shard, all its chunks.
  [[nodiscard]] std::int64_t own_tokens(side s) const { return first_tokens_[static_cast<std::size_t>(s)][chunks]; }
  [[nodiscard]] std::int64_t heads(const block& b) const {
    return b.side == side::query ? slice(b).query_heads : slice(b).key_heads;
  }
  [[nodiscard]] head_map map_of(const block& b) const {
    return {slice(b).first_query_head, slice(b).first_key_head, query_heads / key_heads};
  }

  /// The part of one of the rank's own tensors that is an own block: its tokens, and the slice's heads.
  template <class View>
  [[nodiscard]] View part_of(const View& whole, const block& own) const {
    const head_slice& s = slice(own);
    return own.side == side::query ? part_of(whole, own, s.first_query_head, s.query_heads)
                                   : part_of(whole, own, s.first_key_head, s.key_heads);
  }
  /// The same of other heads.
  template <class View>
  [[nodiscard]] View part_of(const View& whole, const block& own, std::int64_t first_head, std::int64_t heads) const {
    const View some = whole.slice_heads(first_head, heads);
    return chunks == 1 ? some : some.slice_tokens(first_token(own), tokens(own));
  }

 private:
  list<std::int64_t> first_tokens_[2];  // of the own chunks, by side; and the number of tokens
};

/// The most blocks that one tile of the program has on a side.
[[nodiscard]] inline std::size_t most_blocks_in_tile(const program& p, side s) {
  int most = 0;
  for (const step& now : p.steps) {
    const int blocks = (s == side::query ? now.tile.queries : now.tile.keys).count;
    if (blocks > most) most = blocks;
  }
  return static_cast<std::size_t>(most);
}

/// Tensors that follow each other in a block's contiguous memory, in the order [batch, head, sequence, dim], which is
/// what kernels read fastest.
class block_reader {
 public:
  block_reader(std::byte* memory, std::int64_t batch, std::int64_t heads, std::int64_t tokens) noexcept
      : memory_{memory}, batch_{batch}, heads_{heads}, tokens_{tokens} {}

  template <class T>
  [[nodiscard]] tensor_view<T> tensor(std::int64_t dim) noexcept {
    return batch_head_sequence_dim(take<T>(dim), batch_, heads_, tokens_, dim);
  }
  template <class T>
  [[nodiscard]] row_view<T> rows() noexcept {
    return batch_head_sequence(take<T>(1), batch_, heads_, tokens_);
  }

 private:
  template <class T>
  T* take(std::int64_t dim) noexcept {
    T* const taken = reinterpret_cast<T*>(memory_);
    memory_ += batch_ * heads_ * tokens_ * dim * static_cast<std::int64_t>(sizeof(T));
    return taken;
  }

  std::byte* memory_;
  std::int64_t batch_;
  std::int64_t heads_;
  std::int64_t tokens_;
};

/// Takes a plan's own array of `count` elements.
template <class T, class Memory>
[[nodiscard]] T* take_array(plan_memory<Memory>& memory, std::int64_t count) {
  return reinterpret_cast<T*>(
      memory.take("delta and the results under way of a plan", count * static_cast<std::int64_t>(sizeof(T))));
}

// An operand is only read; its address comes without const because a received block is written by the transport.
[[nodiscard]] inline std::byte* writable(const std::byte* memory) noexcept { return const_cast<std::byte*>(memory); }

}  // namespace orrery::detail
