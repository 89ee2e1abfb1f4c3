// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/attention/token_blocks.hpp"
#include "orrery/kernel/cpu/scratch.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/math.hpp"

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
  A* keys_transposed;    // [key_dim][key_block], scaled to powers of two
  A* values_transposed;  // [value_dim][key_block]
  A* grad_keys;          // [key_block][key_width]
  A* grad_values;        // [key_block][value_width]
  A* queries;            // [row_block][key_width]; last their gradients, where these do not fit the caller's memory
  A* grad_out;           // [row_block][value_width]
  A* probabilities;      // [row_block][key_block]
  A* grad_scores;        // [row_block][key_block], to be scaled
  A* base;               // [row_block]; +infinity for rows that contribute nothing
  A* factors;            // [row_block]: probabilities are factors * 2^(score - base)
  A* delta;              // [row_block]

  /// Clears a row of queries, on which nothing depends.
  void clear_row(std::int64_t row) const {
    fill_zero(queries + row * key_ld, key_width);
    fill_zero(grad_out + row * value_ld, value_width);
  }

  /// Gives pairs with a score of -infinity (scores are in `grad_scores`) the probability -1, which no other pair has,
  /// among `keys_count` keys from `first` on.
  void mark_hidden_scores(std::int64_t rows, std::int64_t first, std::int64_t keys_count) const {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = i * score_ld + first; j < i * score_ld + first + keys_count; ++j) {
        if (math::is_minus_infinity(grad_scores[j])) probabilities[j] = A{-1};
      }
    }
  }

  /// Clears the marked pairs, which contribute nothing, even where their row's log-sum-exp or delta is NaN. What is
  /// infinite or NaN in queries becomes 0, since grad_k takes them from here: as for keys (see `keys`).
  void clear_hidden_scores(std::int64_t rows, std::int64_t first, std::int64_t keys_count) const {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = i * score_ld + first; j < i * score_ld + first + keys_count; ++j) {
        if (probabilities[j] == A{-1}) probabilities[j] = grad_scores[j] = A{0};
      }
      A* query = queries + i * key_ld;
      for (std::int64_t c = 0; c < key_width; ++c) query[c] = math::is_finite(query[c]) ? query[c] : A{0};
    }
  }

  /// Clears the pairs of rows that have seen no key.
  void clear_empty_rows(std::int64_t rows, std::int64_t first, std::int64_t keys_count) const {
    for (std::int64_t i = 0; i < rows; ++i) {
      if (!math::is_minus_infinity(-base[i])) continue;
      fill_zero(probabilities + i * score_ld + first, keys_count);
      fill_zero(grad_scores + i * score_ld + first, keys_count);
    }
  }

  /// Clears invisible pairs of the keys [first, last). (Their probabilities may have overflowed: they are overwritten,
  /// not used.) Clears rows that see none of these keys; `seen_by_some` becomes the keys that some row sees.
  template <mask Mask, class SeenKeys>
  void hide(const Mask& mask, const token_block& rows, const token_block& block, std::int64_t first, std::int64_t last,
            std::int64_t granule, SeenKeys& seen_by_some) const {
    seen_by_some.begin(first, last, false);
    for (std::int64_t i = 0; i < rows.count; ++i) {
      bool sees = false;
      const std::int64_t position = rows.position(i);
      A* probability = probabilities + i * score_ld;
      A* grad = grad_scores + i * score_ld;
      if constexpr (mask_of_intervals<Mask>) {
        const token_range of_row = visible_tokens(mask, position, position, block);
        const std::int64_t begin = of_row.first < first ? first : of_row.first < last ? of_row.first : last;
        const std::int64_t end = of_row.last < begin ? begin : of_row.last < last ? of_row.last : last;
        for (A* line : {probability, grad}) {
          fill_zero(line + first, begin - first);
          fill_zero(line + end, last - end);
        }
        if (begin < end) {
          seen_by_some.set(begin, end, true);
        } else {
          clear_row(i);
        }
        continue;
      }
      for (std::int64_t group = first; group < last; group += granule) {
        const std::int64_t end = group + granule < last ? group + granule : last;
        const visibility seen = mask.classify(position, position, block.position(group), block.position(end - 1));
        if (seen == visibility::all) {
          sees = true;
          seen_by_some.set(group, end, true);
          continue;
        }
        for (std::int64_t key = group; key < end; ++key) {
          if (seen == visibility::some && mask.visible(position, block.position(key))) {
            sees = true;
            seen_by_some.set(key, key + 1, true);
            continue;
          }
          probability[key] = A{0};
          grad[key] = A{0};
        }
      }
      if (!sees) clear_row(i);
    }
  }
};

}  // namespace orrery::detail
