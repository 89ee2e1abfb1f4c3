// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/layout/labels.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/layout.hpp"

#include "support/refusal.hpp"

namespace {

using orrery::batch_head_sequence;

constexpr std::int64_t batch = 2;
constexpr std::int64_t ignored = -100;

/// Compares the labels of all shards with those of the whole sequence, computed by document.
template <class Layout>
void check_labels(int world, std::int64_t length, const std::vector<std::int64_t>& documents) {
  INFO(Layout::name(), " over ", world, ", length ", length, ", ", documents.size(), " documents");
  const auto size = static_cast<std::size_t>(length);
  std::vector<std::int64_t> ids(2 * size), expected(2 * size, ignored);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i * 37 % 1009);
  std::size_t begin = 0;
  for (const std::int64_t one : documents.empty() ? std::vector{length} : documents) {
    for (std::size_t i = begin; i + 1 < begin + static_cast<std::size_t>(one); ++i) {
      for (std::size_t b = 0; b < 2; ++b) expected[b * size + i] = ids[b * size + i + 1];
    }
    begin += static_cast<std::size_t>(one);
  }
  const auto whole = batch_head_sequence<const std::int64_t>(ids.data(), batch, 1, length);
  for (int rank = 0; rank < world; ++rank) {
    const orrery::token_positions positions{Layout::shard(rank, world, length)};
    std::vector<std::int64_t> labels(static_cast<std::size_t>(2 * positions.size()), -1);
    orrery::take_labels(whole, positions, batch_head_sequence(labels.data(), batch, 1, positions.size()), ignored,
                        documents);
    std::size_t wrong = 0, token = 0;
    for (const std::int64_t p : positions) {
      for (std::size_t b = 0; b < 2; ++b) {
        wrong += labels[b * static_cast<std::size_t>(positions.size()) + token] !=
                 expected[b * size + static_cast<std::size_t>(p)];
      }
      ++token;
    }
    CHECK(wrong == 0);
  }
}

std::string message_of(const std::vector<std::int64_t>& documents) {
  std::vector<std::int64_t> ids(10), labels(10);
  return refusal_of([&] {
    orrery::take_labels(batch_head_sequence<const std::int64_t>(ids.data(), 1, 1, 10),
                        orrery::token_positions{orrery::contiguous::shard(0, 1, 10)},
                        batch_head_sequence(labels.data(), 1, 1, 10), ignored, documents);
  });
}

}  // namespace

TEST_CASE("labels are the tokens that follow, across the borders of shards and not across those of documents") {
  for (const int world : {1, 2, 3, 5, 8}) {
    for (const std::int64_t length : {1, 2, 7, 16, 45}) {
      for (const std::vector<std::int64_t>& documents :
           {std::vector<std::int64_t>{},
            {length},
            std::vector<std::int64_t>(static_cast<std::size_t>(length), 1),
            {(length + 1) / 2},
            length > 6 ? std::vector<std::int64_t>{1, 4, length - 6} : std::vector<std::int64_t>{}}) {
        check_labels<orrery::contiguous>(world, length, documents);
        check_labels<orrery::zigzag>(world, length, documents);
        check_labels<orrery::striped<3>>(world, length, documents);
      }
    }
  }
}

TEST_CASE("documents that do not fit are refused by number") {
  CHECK(message_of({4, 6}).empty());
  CHECK(message_of({4, 0, 6}) ==
        "orrery: take_labels: the length of document 1 is 0, expected 1 to 6, what is left of the whole sequence's 10 "
        "tokens");
  CHECK(message_of({4, 7}).find("the length of document 1 is 7, expected 1 to 6") != std::string::npos);
  CHECK(message_of({-1}).find("the length of document 0 is -1") != std::string::npos);
}
