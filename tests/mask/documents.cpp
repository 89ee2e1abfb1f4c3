// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Packed documents, alone and with masks inside, of equal and of different lengths of queries and keys.
#include "orrery/mask/documents.hpp"

#include <array>
#include <concepts>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/mask/causal.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/named.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"

#include "mask/brute_force.hpp"
#include "support/refusal.hpp"

using orrery::causal;
using orrery::documents;
using orrery::intersection;
using orrery::prefix;
using orrery::window;

namespace {

using lengths = std::vector<int>;
using pair_visible = std::function<bool(std::int64_t, std::int64_t)>;

/// The definition: loops over documents, of which each asks `inside` for positions in it.
pair_visible packed(const lengths& query_lengths, const lengths& key_lengths, const pair_visible& inside,
                    bool top_left = false) {
  return [=](std::int64_t query, std::int64_t key) {
    for (std::size_t i = 0; i < query_lengths.size(); ++i) {
      const bool of_query = query >= 0 && query < query_lengths[i];
      const bool of_key = key >= 0 && key < key_lengths[i];
      if (of_query && of_key) {
        const int shift = top_left ? 0 : key_lengths[i] - query_lengths[i];
        return inside(query + shift, key);
      }
      query -= query_lengths[i];
      key -= key_lengths[i];
    }
    return false;
  };
}

/// All ways to write `tokens` as lengths of documents, in order.
std::vector<lengths> compositions(int tokens) {
  if (tokens == 0) return {{}};
  std::vector<lengths> all;
  for (int last = 1; last <= tokens; ++last) {
    for (lengths front : compositions(tokens - last)) {
      front.push_back(last);
      all.push_back(front);
    }
  }
  return all;
}

/// A user's mask, of positions in the sequence.
struct even_keys {
  [[nodiscard]] constexpr bool visible(std::int64_t, std::int64_t key) const { return key % 2 == 0; }
  [[nodiscard]] constexpr orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) const {
    return orrery::visibility::some;
  }
  [[nodiscard]] static std::string name() { return "even keys"; }
};
/// A user's mask, of positions in documents, without keys_of.
struct even_keys_of_document : even_keys {
  static constexpr bool counts_in_documents = true;
};

template <class Mask>
void check_inside(const Mask& inside, const mask_test::exact& exact = {}) {
  const auto visible = [&](std::int64_t query, std::int64_t key) { return inside.visible(query, key); };
  for (const int tokens : {1, 2, 4, 6}) {
    for (const lengths& all : compositions(tokens)) {
      // With padding.
      CHECK(mask_test::first_wrong(documents{all} & inside, packed(all, all, visible), tokens + 2, tokens + 2, exact) ==
            "");
    }
  }
  for (const lengths& queries : compositions(4)) {
    for (const lengths& keys : compositions(5)) {
      if (queries.size() != keys.size()) continue;
      const documents both{queries, keys};
      CHECK(mask_test::first_wrong(both & inside, packed(queries, keys, visible), 6, 7, exact) == "");
      CHECK(mask_test::first_wrong(inside & both.top_left(), packed(queries, keys, visible, true), 6, 7, exact) == "");
      CHECK(mask_test::first_wrong(documents{keys, queries} & inside, packed(keys, queries, visible), 7, 6, exact) ==
            "");
    }
  }
}

constexpr bool works_at_compile_time() {
  const std::array all{3, 4, 5};
  const auto mask = documents{all} & causal{} & window{.left = 1};
  return mask.visible(4, 3) && !mask.visible(3, 2) && !mask.visible(6, 4) &&
         mask.keys_of(3, 5) == orrery::position_interval{3, 5} && mask.classify(0, 2, 3, 9) == orrery::visibility::none;
}
static_assert(works_at_compile_time());
static_assert(orrery::mask_with_keys_of<documents> && orrery::detail::mask_of_intervals<documents>);

}  // namespace

TEST_CASE("documents beside their definition, alone and with masks inside") {
  check_inside(orrery::full{});
  check_inside(causal{});
  check_inside(causal{-2});
  check_inside(causal{1});
  check_inside(window{.left = 1, .right = 0});
  check_inside(window{.right = 1});
  check_inside(prefix{2});
  check_inside(causal{} & window{.left = 1});
  check_inside(orrery::any_mask{causal{} & window{.left = 2}});
  check_inside(even_keys_of_document{}, {false, false});
}

TEST_CASE("causal documents are those of FlashAttention's variable lengths") {
  // Two queries that were appended to five cached keys, and four that have none: rows of keys that are seen.
  const documents batch = documents::from_cu_seqlens(std::vector<int>{0, 2, 6}, std::vector<int>{0, 7, 11});
  const char* const bottom_right[] = {"111111.....", "1111111....", ".......1...",
                                      ".......11..", ".......111.", ".......1111"};
  const char* const top_left[] = {"1..........", "11.........", ".......1...",
                                  ".......11..", ".......111.", ".......1111"};
  for (std::int64_t query = 0; query < 6; ++query) {
    for (std::int64_t key = 0; key < 11; ++key) {
      CHECK((batch & causal{}).visible(query, key) == (bottom_right[query][key] == '1'));
      CHECK((batch.top_left() & causal{}).visible(query, key) == (top_left[query][key] == '1'));
    }
  }
  CHECK((batch & causal{}).keys_of(1, 2) == orrery::position_interval{0, 7});
}

TEST_CASE("the order of operands does not matter, and masks of a user's own are asked for positions in the sequence") {
  const lengths of{3, 1, 4};
  const documents batch{of};
  const auto expected = [&](std::int64_t query, std::int64_t key) {
    return packed(of, of, [](std::int64_t i, std::int64_t j) { return j <= i && i - j <= 1; })(query, key) &&
           key % 2 == 0;
  };
  const causal diagonal;
  const window sides{.left = 1};
  const even_keys own;
  const auto check = [&](const auto& mask) {
    CHECK(mask_test::first_wrong(mask, expected, 9, 9, {false, false}) == "");
  };
  check(batch & diagonal & sides & own);
  check(own & batch & diagonal & sides);
  check(diagonal & sides & own & batch);
  check(diagonal & own & batch & sides);
  check((own & diagonal) & (batch & sides));
  check((diagonal & own) & (sides & batch));
  check(diagonal & own & (sides & batch));
  static_assert(std::same_as<decltype(batch & own), intersection<documents, even_keys>>);
  static_assert(std::same_as<decltype(batch & orrery::full{}), documents>);
}

TEST_CASE("lengths, cu_seqlens and types of integers make the same documents") {
  const documents batch{std::vector<int>{3, 4, 5}};
  CHECK(batch.size() == 3);
  CHECK(batch.queries() == 12);
  CHECK(documents::from_cu_seqlens(std::array<std::int64_t, 4>{0, 3, 7, 12}) == batch);
  CHECK(documents{std::vector<std::uint8_t>{3, 4, 5}} == batch);
  CHECK(documents{std::array{3, 4, 5}, std::vector<std::uint64_t>{3, 4, 5}} == batch);
  CHECK(documents::from_cu_seqlens(std::array{0, 3, 7, 12}, std::array{0, 3, 7, 12}).top_left() == batch);
  CHECK_FALSE(documents{std::array{4, 3, 5}} == batch);
  CHECK_FALSE(documents{std::array{3, 4, 5}, std::array{3, 5, 4}} == batch);
  const documents copy = batch;
  CHECK(copy == batch);
}

TEST_CASE("names have the number of documents and a digest of their lengths") {
  const std::string name = documents{std::array{3, 4, 5}}.name();
  CHECK(name == "documents<3 of 12 tokens, digest 1bf4a1382ec2e04d>");
  CHECK(documents{std::array{3, 5, 4}}.name() != name);
  const documents apart{std::array{3, 4}, std::array{5, 6}};
  CHECK(apart.name().find("documents<2 of 7 queries and 11 keys, digest ") == 0);
  CHECK(apart.top_left().name().find(", top left>") != std::string::npos);
  CHECK(documents{std::array{3, 6}, std::array{5, 6}}.name() != apart.name());
  CHECK((causal{} & documents{std::array{3, 4, 5}} & window{2, 0}).name() == name + " & causal & window<2,0>");
  CHECK(documents{std::vector<int>(100000, 7)}.name().size() < 80);
}

TEST_CASE("lengths that are wrong are refused by name") {
  const auto said = [](const auto&... arguments) {
    return refusal_of([&] { static_cast<void>(documents{arguments...}); });
  };
  CHECK(said(lengths{3, 0}) ==
        "orrery: documents: lengths[1] is 0, expected at least 1 token; leave out documents without tokens");
  CHECK(said(lengths{-2}) ==
        "orrery: documents: lengths[0] is -2, expected at least 1 token; leave out documents without tokens");
  CHECK(said(lengths{}) ==
        "orrery: documents: lengths has 0 numbers, expected one for each document, of which there is at least 1");
  CHECK(said(lengths{3, 4}, lengths{3, 0}).find("key_lengths[1] is 0, expected") != std::string::npos);
  CHECK(
      said(lengths{3, 4}, lengths{7}) ==
      "orrery: documents: query_lengths has 2 documents and key_lengths has 1, expected as many: each has queries and "
      "keys");
  CHECK(said(std::vector<std::int64_t>{3, INT64_MAX}).find("lengths[1] is 9223372036854775807, too long") !=
        std::string::npos);
  CHECK(said(std::vector<std::uint64_t>{UINT64_MAX}).find("is 18446744073709551615, too long") != std::string::npos);
}

TEST_CASE("cu_seqlens that are wrong are refused by name") {
  const auto said = [](const auto&... arguments) {
    return refusal_of([&] { static_cast<void>(documents::from_cu_seqlens(arguments...)); });
  };
  CHECK(said(lengths{2, 5}) == "orrery: documents: cu_seqlens[0] is 2, expected 0, where the first document begins");
  CHECK(said(lengths{0, 5, 3}) ==
        "orrery: documents: cu_seqlens[2] is 3 after 5, expected increasing positions; documents must not overlap");
  CHECK(said(lengths{0, 5, 5}) ==
        "orrery: documents: cu_seqlens[2] is 5 after 5, a document without tokens; leave it out");
  CHECK(said(lengths{0}) ==
        "orrery: documents: cu_seqlens has only its first 0, expected the end of a document behind it");
  CHECK(said(lengths{0, 4}, lengths{0, -4}).find("cu_seqlens_k[1] is -4 after 0, expected increasing") !=
        std::string::npos);
  CHECK(
      said(lengths{0, 4}, lengths{0, 4, 8}) ==
      "orrery: documents: cu_seqlens_q has 1 documents and cu_seqlens_k has 2, expected as many: each has queries and "
      "keys");
}

TEST_CASE("documents that are longer than the sequence are refused; shorter ones leave padding") {
  const documents batch{std::array{3, 4}};
  CHECK(batch.wrong_lengths(7, 7) == "");
  CHECK(batch.wrong_lengths(9, 12) == "");
  CHECK(batch.wrong_lengths(6, 7).find("the 2 documents have 7 queries, but length is 6; leave out documents") == 0);
  CHECK(batch.wrong_lengths(7, 5).find("the 2 documents have 7 keys, but key_length is 5;") == 0);
  CHECK((batch & causal{} & window{.left = -9}).wrong_lengths(7, 7).find("window::left is -9") == 0);
  CHECK((causal{} & even_keys{} & batch).wrong_lengths(6, 7).find("the 2 documents have 7 queries") == 0);
}

TEST_CASE("many documents") {
  // The binary search, at the ends of documents; and rectangles over more documents than are asked for.
  std::vector<int> all;
  for (int i = 0; i < 1000; ++i) all.push_back(1 + i * 7 % 13);
  const documents batch{all};
  const auto mask = batch & causal{};
  std::int64_t begin = 0;
  for (const int length : all) {
    const std::int64_t last = begin + length - 1;
    CHECK(batch.keys_of(begin, last) == orrery::position_interval{begin, last});
    CHECK(mask.keys_of(last, last) == orrery::position_interval{begin, last});
    CHECK(mask.keys_of(begin, begin) == orrery::position_interval{begin, begin});
    CHECK(batch.classify(begin, last, begin, last) == orrery::visibility::all);
    CHECK(batch.visible(begin, last));
    CHECK_FALSE((begin > 0 && batch.visible(begin, begin - 1)));
    CHECK_FALSE(batch.visible(last, last + 1));
    begin += length;
  }
  CHECK(mask.classify(0, begin - 1, 0, begin - 1) == orrery::visibility::some);
  const auto empty = batch & causal{-100};
  CHECK(empty.classify(0, 20, 0, 20) == orrery::visibility::none);
  CHECK(empty.keys_of(0, begin).empty());
}
