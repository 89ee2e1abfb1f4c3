// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/attention/token_blocks.hpp"
#include "orrery/kernel/cpu/microkernels.hpp"
#include "orrery/kernel/cpu/scratch.hpp"
#include "orrery/tensor/math.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// The scratch of a block of keys in the backward of `flash`, and of the block of queries that it meets. Its functions
/// clear what must contribute nothing to the products.
template <class A>
struct flash_backward_workspace {
  std::int64_t key_width;    // the key dimension, padded to whole vectors
  std::int64_t value_width;  // the value dimension, likewise
  std::int64_t key_ld;       // distances of rows
  std::int64_t value_ld;
  std::int64_t score_ld;

  A* keys;               // [key_block][key_width], scaled; 0 where they are infinite or NaN
  A* keys_transposed;    // [part][key_dim][key_part], scaled to powers of two
  A* values_transposed;  // [part][value_dim][key_part]
  A* grad_keys;          // [key_block][key_width]
  A* grad_values;        // [key_block][value_width]
  A* queries;            // [row_block][key_width]
  A* grad_queries;       // [row_block][key_width]; the same memory as `queries` where a block of keys is one part
  A* grad_out;           // [row_block][value_width]
  A* probabilities;      // [row_block][key_part]
  A* grad_scores;        // [row_block][key_part], to be scaled
  A* base;               // [row_block]; +infinity for rows that contribute nothing
  A* factors;            // [row_block]: probabilities are factors * 2^(score - base)
  A* delta;              // [row_block]

  /// Clears a row of queries, on which nothing depends.
  void clear_row(std::int64_t row) const {
    fill_zero(queries + row * key_ld, key_width);
    fill_zero(grad_out + row * value_ld, value_width);
  }

  /// Gives pairs with a score of -infinity (scores are in `grad_scores`) the probability -1, which no other pair has,
  /// among `keys_count` keys from column `first` on.
  void mark_hidden_scores(const token_range& rows, std::int64_t first, std::int64_t keys_count) const {
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
      for (std::int64_t j = i * score_ld + first; j < i * score_ld + first + keys_count; ++j) {
        if (math::is_minus_infinity(grad_scores[j])) probabilities[j] = A{-1};
      }
    }
  }

  /// Clears the marked pairs, which contribute nothing, even where their row's log-sum-exp or delta is NaN. What is
  /// infinite or NaN in queries becomes 0, since grad_k takes them from here: as for keys (see `keys`).
  void clear_hidden_scores(const token_range& rows, std::int64_t first, std::int64_t keys_count) const {
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
      for (std::int64_t j = i * score_ld + first; j < i * score_ld + first + keys_count; ++j) {
        if (probabilities[j] == A{-1}) probabilities[j] = grad_scores[j] = A{0};
      }
      A* query = queries + i * key_ld;
      for (std::int64_t c = 0; c < key_width; ++c) query[c] = math::is_finite(query[c]) ? query[c] : A{0};
    }
  }

  /// True if this row has seen no key.
  [[nodiscard]] bool is_empty_row(std::int64_t i) const { return math::is_minus_infinity(-base[i]); }

  /// Clears the pairs of rows that have seen no key.
  void clear_empty_rows(const token_range& rows, std::int64_t first, std::int64_t keys_count) const {
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
      if (!is_empty_row(i)) continue;
      fill_zero(probabilities + i * score_ld + first, keys_count);
      fill_zero(grad_scores + i * score_ld + first, keys_count);
    }
  }
};

/// to = factor * from if `fresh`, else to += factor * from, for one head of a block of tokens. Leaves in `from` what
/// the addition has lost.
template <class A>
inline void carry_tokens(const flash_steps<A>& steps, A* from, std::int64_t ld, A factor, const tensor_view<A>& to,
                         bool fresh, std::int64_t b, std::int64_t head, const token_block& tokens) {
  const A inverse = A{1} / factor;
  const A back = math::is_finite(inverse) ? inverse : A{0};
  for (std::int64_t i = 0; i < tokens.count; ++i) {
    A* line = to.at(b, tokens.first + i, head);
    if (fresh) fill_zero(line, to.dim);
    steps.carry(from + i * ld, factor, back, line, to.dim);
  }
}

/// to = factor * from if `fresh`, else to += factor * from, for one head of a block of tokens.
template <class A>
inline void add_tokens(const A* from, std::int64_t ld, A factor, const tensor_view<A>& to, bool fresh, std::int64_t b,
                       std::int64_t head, const token_block& tokens) {
  for (std::int64_t i = 0; i < tokens.count; ++i) {
    A* line = to.at(b, tokens.first + i, head);
    for (std::int64_t c = 0; c < to.dim; ++c) line[c] = factor * from[i * ld + c] + (fresh ? A{0} : line[c]);
  }
}

}  // namespace orrery::detail
