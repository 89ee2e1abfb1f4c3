// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <type_traits>

#include "orrery/layout/segment.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery {

/// Maps query heads to the key heads that they read. Heads are counted within the views of one tile, which may hold
/// only a slice of the model's heads; several query heads share a key head when the model has fewer key heads (GQA,
/// MQA).
struct head_map {
  std::int64_t first_query_head = 0;      ///< the model's index of query head 0 of the views
  std::int64_t first_key_head = 0;        ///< the model's index of key head 0 of the views
  std::int64_t queries_per_key_head = 1;  ///< the model's query heads / key heads

  [[nodiscard]] constexpr std::int64_t key_head(std::int64_t query_head) const noexcept {
    return (first_query_head + query_head) / queries_per_key_head - first_key_head;
  }
};

/// The query side of a forward tile: one shard's queries and their running partial result.
///
/// `out` is the softmax-weighted mean of the values seen so far and `lse` the natural log of the sum of their
/// exponentiated scores, so that (out, lse) is at all times the right answer for the keys seen so far; rows that have
/// seen no key hold out = 0, lse = -infinity. If `fresh`, the memory holds nothing yet and must be written, not read.
template <class Storage, class Accumulator>
struct forward_queries {
  tensor_view<const Storage> q;
  tensor_view<Accumulator> out;
  row_view<Accumulator> lse;
  segments positions;
  bool fresh = true;
  bool own = false;  ///< the rank's own shard, where the trainer has it; else packed, as it travels
};

/// The key side of a forward tile: one shard's keys and values. The head dimensions of k and v may differ.
template <class Storage>
struct forward_keys {
  tensor_view<const Storage> k;
  tensor_view<const Storage> v;
  segments positions;
  bool own = false;  ///< the rank's own shard, where the trainer has it; else packed, as it travels
};

/// The query side of a backward tile. `lse` is the forward's final log-sum-exp, `delta` the row sums of
/// grad_out * out; grad_q is a running sum (written, not read, if `fresh`).
template <class Storage, class Accumulator>
struct backward_queries {
  tensor_view<const Storage> q;
  tensor_view<const Storage> grad_out;
  row_view<const Accumulator> lse;
  row_view<const Accumulator> delta;
  tensor_view<Accumulator> grad_q;
  segments positions;
  bool fresh = true;
  bool own = false;  ///< the rank's own shard, where the trainer has it; else packed, as it travels
};

/// The key side of a backward tile; grad_k and grad_v are running sums (written, not read, if `fresh`).
template <class Storage, class Accumulator>
struct backward_keys {
  tensor_view<const Storage> k;
  tensor_view<const Storage> v;
  tensor_view<Accumulator> grad_k;
  tensor_view<Accumulator> grad_v;
  segments positions;
  bool fresh = true;
  bool own = false;  ///< the rank's own shard, where the trainer has it; else packed, as it travels
};

}  // namespace orrery

namespace orrery::detail {

/// The type of an operator's log-sum-exp: depends on the element type alone, so that kernels of one element type can
/// take each other's place in a trainer, whatever they sum in. Float for float and the 16-bit types, double for double.
template <class Storage>
using log_sum_exp_of = std::conditional_t<(sizeof(Storage) < sizeof(float)), float, Storage>;

/// A whole attention forward: one query block meets one key block, nothing else meets either, and both are the
/// trainer's. So what a kernel computes is the result, and may be written as the trainer stores it (see
/// `planned_kernel`).
template <class Storage>
struct whole_forward {
  tensor_view<const Storage> q;
  tensor_view<const Storage> k;
  tensor_view<const Storage> v;
  tensor_view<Storage> out;
  row_view<log_sum_exp_of<Storage>> lse;
  segments query_positions;
  segments key_positions;
};

/// A whole attention backward, likewise. `out` and `lse` are the forward's results.
template <class Storage>
struct whole_backward {
  tensor_view<const Storage> q;
  tensor_view<const Storage> k;
  tensor_view<const Storage> v;
  tensor_view<const Storage> out;
  row_view<const log_sum_exp_of<Storage>> lse;
  tensor_view<const Storage> grad_out;
  tensor_view<Storage> grad_q;
  tensor_view<Storage> grad_k;
  tensor_view<Storage> grad_v;
  segments query_positions;
  segments key_positions;
};

}  // namespace orrery::detail
