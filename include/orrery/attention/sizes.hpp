// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "orrery/attention/shape.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"

namespace orrery::detail {

/// The heads of one slice: which query heads, and which key heads these read. Slices differ by one query head at most;
/// a key head belongs to every slice that has one of its query heads.
struct head_slice {
  std::int64_t first_query_head = 0;
  std::int64_t query_heads = 0;
  std::int64_t first_key_head = 0;
  std::int64_t key_heads = 0;

  [[nodiscard]] static constexpr head_slice of(int slice, int slices, std::int64_t query_heads,
                                               std::int64_t key_heads) noexcept {
    const std::int64_t first = begin_of_piece(slice, slices, query_heads);
    const std::int64_t end = begin_of_piece(slice + 1, slices, query_heads);
    const std::int64_t group = query_heads / key_heads;
    if (first == end) return {first, 0, first / group, 0};
    return {first, end - first, first / group, (end - 1) / group + 1 - first / group};
  }

  /// Of all slices.
  [[nodiscard]] static list<head_slice> all(int slices, std::int64_t query_heads, std::int64_t key_heads) {
    list<head_slice> heads;
    for (int s = 0; s < slices; ++s) heads.push_back(of(s, slices, query_heads, key_heads));
    return heads;
  }
};

}  // namespace orrery::detail

namespace orrery {

/// The bytes of the blocks of an attention operator in one pass: what an executor allocates and sends, and a cost for
/// `traffic`, which then says what `counted` counts, to the byte.
///
///     const auto bytes = attention_sizes::of<flash<bfloat16>>(
///         {.length = 65536, .query_heads = 32, .key_heads = 8, .head_dim = 128}, pass::forward, world, zigzag{});
///     traffic(programs_of(concentric<4>{}, world), bytes).node_egress(8);
///
/// With h heads of a slice, t tokens of a shard, elements of S bytes and sums of A bytes, a block has batch · h · t
/// times:
///
/// | | query operand | query partial | key operand | key partial |
/// | --- | --- | --- | --- | --- |
/// | forward | Q: head_dim · S | O, lse: (value_dim + 1) · A | K, V: (head_dim + value_dim) · S | |
/// | backward | Q, dO, lse, delta: (head_dim + value_dim) · S + 2 · A | dQ: head_dim · A | K, V: as forward | dK, dV:
/// (head_dim + value_dim) · A |
class attention_sizes {
 public:
  /// The tensors of which operands consist, each with the side to which it belongs: forward Q, K and V, which may
  /// travel one by one; backward all of a query block, and all of a key block.
  static constexpr std::array forward_tensors{schedule::side::query, schedule::side::key, schedule::side::key};
  static constexpr std::array backward_tensors{schedule::side::query, schedule::side::key};

  /// The sizes of an operator with this kernel, whose topology cuts the heads into `slices` slices (see `slices_of`),
  /// and whose shards are cut into `chunks` chunks.
  ///
  /// Throws `std::invalid_argument` if an operator of this shape would be refused, for its sizes or its layout.
  template <class Kernel, layout Layout = contiguous>
  [[nodiscard]] static attention_sizes of(const attention_shape& shape, schedule::pass p, int world,
                                          const Layout& layout = {}, int slices = 1, int chunks = 1) {
    const detail::attention_request request{shape.completed(),    world, "",           slices, Kernel::name(),
                                            Kernel::max_head_dim, "",    layout.name()};
    std::string error = request.what_is_wrong_with_sizes();
    if (world < 1) error = "world is " + std::to_string(world) + ", expected at least 1";
    if (slices < 1 || slices > shape.query_heads) {
      error = "slices is " + std::to_string(slices) + ", expected a number from 1 to query_heads, " +
              std::to_string(shape.query_heads);
    }
    schedule::list<segments> shards[2];
    const std::int64_t lengths[] = {shape.length, shape.key_length.value_or(shape.length)};
    for (int side = 0; side < 2 && error.empty(); ++side) {
      const std::string wrong = detail::layout_source{layout}.deal(world, lengths[side], chunks, shards[side]);
      if (!wrong.empty()) error = request.wrong_shards(side == 0 ? "length" : "key_length", lengths[side], wrong);
    }
    if (!error.empty()) throw std::invalid_argument{"orrery: attention_sizes: " + error};
    return {
        request.shape, p,        slices, chunks, sizeof(typename Kernel::storage), sizeof(typename Kernel::accumulator),
        shards[0],     shards[1]};
  }

  /// `shape` is completed, and the shards of all ranks are right: chunk c of shard s at [s * chunks + c].
  attention_sizes(const attention_shape& shape, schedule::pass p, int slices, int chunks, std::size_t storage_bytes,
                  std::size_t sum_bytes, const schedule::list<segments>& query_shards,
                  const schedule::list<segments>& key_shards)
      : shape_{shape},
        pass_{p},
        chunks_{chunks},
        storage_bytes_{static_cast<std::int64_t>(storage_bytes)},
        sum_bytes_{static_cast<std::int64_t>(sum_bytes)},
        slices_{detail::head_slice::all(slices, shape.query_heads, *shape.key_heads)} {
    for (const segments& shard : query_shards) tokens_[0].push_back(shard.tokens());
    for (const segments& shard : key_shards) tokens_[1].push_back(shard.tokens());
  }

  /// The same in another pass.
  [[nodiscard]] attention_sizes in_pass(schedule::pass p) const {
    attention_sizes other = *this;
    other.pass_ = p;
    return other;
  }

  /// Tokens of a block. Throws `std::invalid_argument` if there is no such block.
  [[nodiscard]] std::int64_t tokens(const schedule::block& b) const {
    const schedule::list<std::int64_t>& shards = tokens_[static_cast<unsigned>(b.side)];
    expect_index("shard", b.shard, shards.size() / chunks_);
    expect_index("chunk", b.chunk, chunks_);
    return shards[b.shard * chunks_ + b.chunk];
  }
  /// Heads of a block. Throws `std::invalid_argument` if there is no such block.
  [[nodiscard]] std::int64_t heads(const schedule::block& b) const {
    expect_index("slice", b.slice, slices_.size());
    return b.side == schedule::side::query ? slices_[b.slice].query_heads : slices_[b.slice].key_heads;
  }

  /// The tensors of operands: the side of each.
  [[nodiscard]] std::span<const schedule::side> tensors() const noexcept {
    if (pass_ == schedule::pass::forward) return forward_tensors;
    return backward_tensors;
  }
  /// Bytes of one tensor of an operand.
  [[nodiscard]] std::int64_t operand_bytes(int tensor, const schedule::block& b) const {
    if (pass_ == schedule::pass::forward)
      return rows(b) * (tensor == 2 ? *shape_.value_dim : shape_.head_dim) * storage_bytes_;
    return rows(b) * ((shape_.head_dim + *shape_.value_dim) * storage_bytes_ +
                      (b.side == schedule::side::query ? 2 * sum_bytes_ : 0));
  }
  /// Bytes of a partial. There is none of a key block in a forward.
  [[nodiscard]] std::int64_t partial_bytes(const schedule::block& b) const {
    if (!schedule::has_partials(pass_, b.side)) return 0;
    if (b.side == schedule::side::key) return rows(b) * (shape_.head_dim + *shape_.value_dim) * sum_bytes_;
    return rows(b) * (pass_ == schedule::pass::forward ? *shape_.value_dim + 1 : shape_.head_dim) * sum_bytes_;
  }

  /// Bytes of all that moves with a block: what it costs.
  [[nodiscard]] std::int64_t operator()(schedule::side s, schedule::payload c, const schedule::block& b) const {
    if (c == schedule::payload::partial) return partial_bytes(b);
    std::int64_t sum = 0;
    const std::span<const schedule::side> all = tensors();
    for (std::size_t t = 0; t < all.size(); ++t) sum += all[t] == s ? operand_bytes(static_cast<int>(t), b) : 0;
    return sum;
  }

 private:
  [[nodiscard]] std::int64_t rows(const schedule::block& b) const { return shape_.batch * heads(b) * tokens(b); }

  static void expect_index(const char* name, int index, int count) {
    if (index >= 0 && index < count) return;
    throw std::invalid_argument{std::string{"orrery: attention_sizes: "} + name + " is " + std::to_string(index) +
                                ", expected less than " + std::to_string(count) +
                                "; the programs must be of the world and the slices that the sizes were made for"};
  }

  attention_shape shape_;
  schedule::pass pass_;
  int chunks_;
  std::int64_t storage_bytes_;
  std::int64_t sum_bytes_;
  schedule::list<detail::head_slice> slices_;
  schedule::list<std::int64_t> tokens_[2];  // of each shard, by side
};

}  // namespace orrery
