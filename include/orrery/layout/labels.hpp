// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "orrery/layout/take.hpp"
#include "orrery/layout/token_positions.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery {

/// Writes the labels of next-token prediction for one shard: for each of its tokens the one that follows it in the
/// whole sequence, wherever that one's shard is, and `ignored` where none follows.
///
/// `tokens` is [batch, heads, length], as token ids are with one head, `labels` [batch, heads, positions.size()]. For
/// packed documents, `documents` holds their lengths, in their order: the last token of a document is followed by none,
/// nor is what comes after the last document. Without, the sequence is one document.
///
///     // ids and labels of this rank: [1, 1, tokens], as row_views; -100 is what a loss of PyTorch ignores
///     orrery::take(whole_ids, attend.query_positions(), ids);
///     orrery::take_labels(whole_ids, attend.query_positions(), labels, std::int64_t{-100}, lengths);
///
/// Shifting a shard's own tokens by one would be wrong: the token after a shard's segment is another rank's. Local:
/// nothing is sent. Host memory, any strides, one pass over the shard and the documents. The views must not share
/// memory. Throws `std::invalid_argument`, before anything is written, for views that do not fit each other or the
/// positions, and for documents that are empty or longer than the sequence.
template <class T>
void take_labels(const row_view<T>& tokens, const token_positions& positions,
                 const row_view<std::remove_const_t<T>>& labels, const std::remove_const_t<T>& ignored,
                 std::span<const std::int64_t> documents = {}) {
  detail::shard_copy{"take_labels"}.check(tokens, positions, labels);
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < documents.size(); ++i) {
    if (documents[i] >= 1 && documents[i] <= tokens.sequence - sum) {
      sum += documents[i];
      continue;
    }
    throw std::invalid_argument{"orrery: take_labels: the length of document " + std::to_string(i) + " is " +
                                std::to_string(documents[i]) + ", expected 1 to " +
                                std::to_string(tokens.sequence - sum) + ", what is left of the whole sequence's " +
                                std::to_string(tokens.sequence) + " tokens"};
  }
  std::size_t document = 0;
  std::int64_t document_end = documents.empty() ? tokens.sequence : documents[0];
  detail::for_each_token(positions, [&](std::int64_t position, std::int64_t token) {
    while (position >= document_end && document + 1 < documents.size()) document_end += documents[++document];
    const bool followed = position + 1 < document_end;
    for (std::int64_t b = 0; b < labels.batch; ++b) {
      for (std::int64_t head = 0; head < labels.heads; ++head) {
        *labels.at(b, head, token) = followed ? *tokens.at(b, head, position + 1) : ignored;
      }
    }
  });
}

}  // namespace orrery
