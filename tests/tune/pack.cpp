// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/tune/pack.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention/relation_of.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/derive_backward.hpp"
#include "orrery/verify/verify.hpp"

#include "support/document_lengths.hpp"
#include "support/finished.hpp"
#include "support/refusal.hpp"

namespace {

using orrery::pass;
using orrery::schedule::list;
using orrery::schedule::relation;

/// The visible pairs of chunks, as an operator asks the mask for them.
template <class Mask>
relation visible_pairs(const Mask& mask, std::int64_t length, const orrery::assignment& work) {
  list<orrery::segments> shards;
  const orrery::contiguous layout;
  CHECK(orrery::detail::layout_source{layout}.deal(work.world, length, work.chunks, shards) == "");
  return orrery::detail::relation_of(mask, shards, shards, work.chunks);
}

/// Proves both passes of the plan for what the mask asks.
void check_proof(const orrery::packed_plan& plan, const relation& visible) {
  const list<orrery::program> forward = orrery::detail::unallocated_programs(plan.work);
  const orrery::verdict found = orrery::verify(finished(forward), visible);
  INFO(found.message());
  CHECK(found.ok());
  const orrery::verdict of_backward = orrery::verify(finished(orrery::schedule::derive_backward(forward)), visible);
  INFO(of_backward.message());
  CHECK(of_backward.ok());
}

std::string message_of(const std::vector<std::int64_t>& lengths, int world, const orrery::pack_options& options = {}) {
  return refusal_of([&] { static_cast<void>(orrery::pack(lengths, world, options)); });
}

/// What the plans of 20 batches of this size cost, on average; units are those of float, without shared key heads.
struct average_of_batches {
  double worst_imbalance = 0;
  double received = 0;
  double most_received = 0;
  double worst_ratio = 0;  ///< of the busiest sender to the busiest receiver

  average_of_batches(std::int64_t length, int world) {
    constexpr unsigned batches = 20;
    for (unsigned seed = 0; seed < batches; ++seed) {
      const std::vector<std::int64_t> lengths = document_lengths::of(length, seed);
      const orrery::packed_plan plan = orrery::pack(lengths, world);
      check_proof(plan, visible_pairs(orrery::documents{lengths} & orrery::causal{}, length, plan.work));
      const orrery::traffic_report costs = traffic(orrery::programs_of(plan.work), orrery::weights_of(pass::forward));
      worst_imbalance = (std::max)(worst_imbalance, plan.imbalance());
      received += costs.total / world / batches;
      most_received += costs.received / batches;
      worst_ratio = (std::max)(worst_ratio, costs.sent / costs.received);
    }
  }
};

}  // namespace

TEST_CASE("real batches are balanced, proven, and send little") {
  SUBCASE("16 ranks, 256K tokens") {
    const average_of_batches costs{1 << 18, 16};
    CHECK(costs.worst_imbalance <= 1.05);
    CHECK(costs.received <= 2.9);
    CHECK(costs.most_received <= 5.7);
    CHECK(costs.worst_ratio <= 2);
  }
  SUBCASE("64 ranks, 1M tokens") {
    const average_of_batches costs{1 << 20, 64};
    CHECK(costs.worst_imbalance <= 1.05);
    CHECK(costs.received <= 4.4);
    CHECK(costs.most_received <= 14.5);
    CHECK(costs.worst_ratio <= 2);
  }
}

TEST_CASE("all documents are planned, causal or not, with padding, in every world") {
  const std::vector<std::vector<std::int64_t>> batches{{1},        {7},      {1, 1, 1},         {30, 1, 2, 9},
                                                       {5, 50, 3}, {40, 40}, {13, 90, 4, 4, 17}};
  for (const std::vector<std::int64_t>& lengths : batches) {
    for (const int world : {1, 2, 3, 5, 8}) {
      for (const int chunks : {1, 2, 3, 8}) {
        for (const std::int64_t padding : {0, 1, 29}) {
          std::int64_t length = padding;
          for (const std::int64_t one : lengths) length += one;
          INFO(lengths.size(), " documents in ", length, " tokens, ", world, " ranks, ", chunks, " chunks");
          const orrery::documents mask{lengths};
          const orrery::packed_plan causal = orrery::pack(lengths, world, {.length = length, .chunks = chunks});
          check_proof(causal, visible_pairs(mask & orrery::causal{}, length, causal.work));
          const orrery::packed_plan full =
              orrery::pack(lengths, world, {.length = length, .causal = false, .chunks = chunks});
          check_proof(full, visible_pairs(mask, length, full.work));
          std::int64_t pairs = 0, squares = 0;
          for (const std::int64_t one : lengths) pairs += one * (one + 1) / 2, squares += one * one;
          CHECK(causal.visible_pairs == pairs);
          CHECK(full.visible_pairs == squares);
          CHECK(causal.busiest_pairs * world >= pairs);
        }
      }
    }
  }
}

TEST_CASE("plans follow from their arguments alone: the same with every compiler and on every machine") {
  std::uint64_t digest = 0;
  for (unsigned seed = 0; seed < 5; ++seed) {
    const std::vector<std::int64_t> lengths = document_lengths::of(1 << 16, seed);
    for (const int world : {3, 8, 16}) {
      const orrery::assignment work = orrery::pack(lengths, world).work;
      CHECK(work == orrery::pack(lengths, world).work);
      orrery::schedule::schedule_digest of_programs;
      for (const orrery::program& one : orrery::programs_of(work)) of_programs.add(one);
      for (const char digit : of_programs.text()) digest = digest * 31 + static_cast<unsigned char>(digit);
    }
  }
  CHECK(digest == 5943704795238458562U);
}

TEST_CASE("chunks of queries see the chunks of keys of their documents, and none before") {
  const std::vector<std::int64_t> two{8, 8}, short_one{3};
  const orrery::detail::document_work work{two, 2, 0, 2, true};  // four chunks of 4
  for (const std::int64_t query : {0, 1, 2, 3}) {
    CHECK(work.first_key(query) == query / 2 * 2);
    CHECK(work.end_key(query) == query + 1);
    for (std::int64_t key = 0; key < 4; ++key) {
      CHECK(work.pairs(query, key) == (key / 2 != query / 2 || key > query ? 0 : key == query ? 10 : 16));
    }
  }
  // Five ranks share three tokens: those without one see nothing.
  const orrery::detail::document_work few{short_one, 5, 0, 1, true};
  CHECK(few.pairs() == 6);
  int without = 0;
  for (std::int64_t query = 0; query < 5; ++query) without += few.first_key(query) == few.end_key(query) ? 1 : 0;
  CHECK(without == 2);
}

TEST_CASE("a batch without pairs is balanced") {
  const orrery::packed_plan plan = orrery::pack({}, 3, {.length = 10});
  CHECK(plan.visible_pairs == 0);
  CHECK(plan.imbalance() == 1);
}

TEST_CASE("weights decide what moves") {
  // One long document, whose last rank has the most work: with cheap keys it is keys that move.
  const std::vector<std::int64_t> lengths{1 << 14};
  const auto blocks_sent = [&](const orrery::pack_options& options) {
    const auto costs =
        traffic(orrery::programs_of(orrery::pack(lengths, 8, options).work), orrery::unit_weights{{1, 1, 1, 1}});
    std::int64_t queries = 0, keys = 0;
    for (const orrery::rank_traffic& rank : costs.ranks) queries += rank.blocks_sent[0], keys += rank.blocks_sent[2];
    return std::vector<std::int64_t>{queries, keys};
  };
  const auto cheap_keys = blocks_sent({.query_weight = 8, .key_weight = 1, .partial_weight = 8});
  const auto cheap_queries = blocks_sent({.query_weight = 1, .key_weight = 64, .partial_weight = 1});
  CHECK(cheap_keys[0] < cheap_queries[0]);
  CHECK(cheap_keys[1] > cheap_queries[1]);
}

TEST_CASE("arguments out of range are refused by name") {
  CHECK(message_of({4, 0, 3}, 2) == "orrery: pack: the length of document 1 is 0, expected at least 1");
  CHECK(message_of({4, -7}, 2) == "orrery: pack: the length of document 1 is -7, expected at least 1");
  CHECK(message_of({}, 2) == "orrery: pack: the number of documents is 0, expected at least 1, or a length");
  CHECK(message_of({4}, 0) == "orrery: pack: world is 0, expected 1 to 32768");
  CHECK(message_of({4}, 2, {.length = 3}) ==
        "orrery: pack: length is 3, expected at least the sum of the documents' lengths, 4, or 0 for just that");
  CHECK(message_of({4}, 2, {.chunks = 0}) == "orrery: pack: chunks is 0, expected 1 to 65535");
  CHECK(message_of({4}, 2, {.tolerance = 999}).find("tolerance is 999, expected at least 1000") != std::string::npos);
  CHECK(message_of({4}, 2, {.key_weight = -1}).find("key_weight is -1, expected at least 0") != std::string::npos);
  CHECK(message_of({std::int64_t{1} << 31, 1}, 2).find("the length of document 1 is 1, expected at most 2^31") !=
        std::string::npos);
  CHECK(message_of({}, 2, {.length = 64}).empty());
}

TEST_CASE("ratios compare exactly") {
  using orrery::detail::is_less_ratio;
  for (std::int64_t a = -6; a <= 6; ++a) {
    for (std::int64_t b = 1; b <= 6; ++b) {
      for (std::int64_t c = -6; c <= 6; ++c) {
        for (std::int64_t d = 1; d <= 6; ++d) CHECK(is_less_ratio(a, b, c, d) == (a * d < c * b));
      }
    }
  }
  constexpr std::int64_t most = INT64_MAX;
  CHECK(is_less_ratio(most - 1, most, most, most));
  CHECK_FALSE(is_less_ratio(most, most - 1, most, most));
  CHECK(is_less_ratio(INT64_MIN, most, -1, most));
}
