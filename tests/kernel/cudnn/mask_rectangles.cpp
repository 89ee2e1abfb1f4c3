// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/kernel/cudnn/mask_rectangles.hpp"

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention/plan.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/intervals.hpp"
#include "orrery/mask/named.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"

#include "kernel/cuda/masks.hpp"
#include "support/conformance.hpp"

namespace {

using orrery::causal;
using orrery::segments;
using orrery::detail::cudnn_part;

constexpr const char* kernel = "device_cudnn<bfloat16>";

/// Empty, or what is wrong with the parts of this pair of blocks.
template <class Mask>
std::string wrong(const segments& queries, const segments& keys, const Mask& mask,
                  const std::vector<cudnn_part>& parts) {
  std::vector<int> seen(static_cast<std::size_t>(queries.tokens() * keys.tokens()));
  for (const cudnn_part& part : parts) {
    if (part.queries < 1 || part.keys < 1 || (part.causal && part.queries > part.keys)) return "an impossible part";
    for (std::int64_t i = 0; i < part.queries; ++i) {
      const std::int64_t count = part.causal ? i + part.keys - part.queries + 1 : part.keys;
      for (std::int64_t j = 0; j < count; ++j) {
        ++seen[static_cast<std::size_t>((part.first_query + i) * keys.tokens() + part.first_key + j)];
      }
    }
  }
  for (std::int64_t i = 0; i < queries.tokens(); ++i) {
    for (std::int64_t j = 0; j < keys.tokens(); ++j) {
      const int times = seen[static_cast<std::size_t>(i * keys.tokens() + j)];
      if (times != (mask.visible(queries.position(i), keys.position(j)) ? 1 : 0)) {
        return "pair " + std::to_string(i) + ", " + std::to_string(j) + " is computed " + std::to_string(times) +
               " times";
      }
    }
  }
  return "";
}

segments piece(std::int64_t begin, std::int64_t count) {
  segments s;
  s.add({begin, count, count, count});
  return s;
}

template <class Mask>
std::string refusal(const segments& queries, const segments& keys, const Mask& mask) {
  try {
    static_cast<void>(orrery::detail::cudnn_parts_of(queries, keys, mask, kernel));
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("parts are what the mask lets be seen, each pair once, under every layout") {
  const std::vector<conformance::any_layout> layouts{orrery::contiguous{}, orrery::zigzag{}, orrery::striped<1>{}};
  std::int64_t checked = 0;
  for (const conformance::any_layout& layout : layouts) {
    for (const int world : {1, 2, 3, 5}) {
      for (const std::int64_t length : {1, 4, 13, 30, 60}) {
        for (const std::int64_t key_length : {length, length + 7, length / 2 + 1}) {
          for (int i = 0; i < world * world; ++i) {
            const segments queries = layout.shard(i / world, world, length);
            const segments keys = layout.shard(i % world, world, key_length);
            for (const std::int64_t offset : {0, 1, 7, 100, -1, -7, -100}) {
              const causal mask{offset};
              INFO(layout.name(), " ", world, " ", length, " ", key_length, " ", i, " ", offset);
              CHECK(wrong(queries, keys, mask, orrery::detail::cudnn_parts_of(queries, keys, mask, kernel)) == "");
              ++checked;
            }
            CHECK(wrong(queries, keys, orrery::full{},
                        orrery::detail::cudnn_parts_of(queries, keys, orrery::full{}, kernel)) == "");
          }
        }
      }
    }
  }
  CHECK(checked > 10000);
}

TEST_CASE("as few parts as can be") {
  const auto shard = [](const auto& layout, int rank) { return layout.shard(rank, 4, 64); };
  using parts = std::vector<cudnn_part>;
  // The two pieces of a zigzag shard among themselves: one triangle; with another's: one rectangle.
  const orrery::zigzag zigzag;
  CHECK(orrery::detail::cudnn_parts_of(shard(zigzag, 1), shard(zigzag, 1), causal{}, kernel) ==
        parts{{0, 16, 0, 16, true}});
  CHECK(orrery::detail::cudnn_parts_of(shard(zigzag, 2), shard(zigzag, 1), causal{}, kernel) ==
        parts{{0, 16, 0, 8, false}});
  CHECK(orrery::detail::cudnn_parts_of(shard(zigzag, 1), shard(zigzag, 2), causal{}, kernel) ==
        parts{{8, 8, 0, 16, false}});
  CHECK(orrery::detail::cudnn_parts_of(shard(zigzag, 1), shard(zigzag, 2), orrery::full{}, kernel) ==
        parts{{0, 16, 0, 16, false}});
  const orrery::striped<1> striped;
  CHECK(orrery::detail::cudnn_parts_of(shard(striped, 2), shard(striped, 1), causal{}, kernel) ==
        parts{{0, 16, 0, 16, true}});
  CHECK(orrery::detail::cudnn_parts_of(shard(striped, 1), shard(striped, 2), causal{}, kernel) ==
        parts{{1, 15, 0, 15, true}});
  // A diagonal above the first query, and one below.
  CHECK(orrery::detail::cudnn_parts_of(piece(10, 8), piece(6, 20), causal{}, kernel) == parts{{0, 8, 0, 12, true}});
  CHECK(orrery::detail::cudnn_parts_of(piece(6, 20), piece(10, 8), causal{}, kernel) ==
        parts{{4, 8, 0, 8, true}, {12, 8, 0, 8, false}});
  CHECK(orrery::detail::cudnn_parts_of(piece(0, 8), piece(8, 8), causal{}, kernel).empty());
  CHECK(orrery::detail::cudnn_parts_of(piece(0, 0), piece(8, 8), causal{}, kernel).empty());
  CHECK(orrery::detail::cudnn_parts_of(piece(0, 8), piece(8, 0), orrery::full{}, kernel).empty());
}

TEST_CASE("other masks: what their interval tests know") {
  const cuda_test::band band{10};
  CHECK(wrong(piece(0, 5), piece(2, 6), band, orrery::detail::cudnn_parts_of(piece(0, 5), piece(2, 6), band, kernel)) ==
        "");
  segments two;
  two.add({0, 4, 4, 4});
  two.add({40, 4, 4, 4});
  CHECK(orrery::detail::cudnn_parts_of(two, two, band, kernel) ==
        std::vector<cudnn_part>{{0, 4, 0, 4, false}, {4, 4, 4, 4, false}});
  CHECK(
      refusal(piece(0, 12), piece(2, 12), band) ==
      "orrery: mask band 10 lets only some pairs be seen between queries at positions 0 to 11 and keys at 2 to 13, of "
      "which kernel device_cudnn<bfloat16> only knows full and causal masks; orrery::device_flash has every mask");
}

TEST_CASE("masks of the library that are no diagonals are refused by name, also where only their values tell") {
  const segments some = piece(0, 12);
  const auto refused = [&](const auto& mask) {
    return refusal(some, some, mask).find("orrery: mask " + mask.name() + " lets only some pairs be seen ") == 0;
  };
  CHECK(refused(orrery::documents{std::array{5, 7}} & causal{}));
  CHECK(refused(orrery::window{.left = 3}));
  CHECK(refused(orrery::prefix{4}));
  CHECK(refused(orrery::intervals{std::array{0, 0, 5}, std::array{3, 12, 9}}));
  CHECK(refused(orrery::documents{std::array{5, 7}} & orrery::prefix{2}));
  CHECK(refused(orrery::any_mask{orrery::window{.left = 3, .right = 0}}));
  CHECK(refused(orrery::any_mask{orrery::prefix{4}}));
  CHECK(refused(causal{} & orrery::window{.left = 3}));
  // Diagonals that are chosen at run time, or combined.
  const auto same = [&](const auto& mask, const causal& diagonal) {
    return orrery::detail::cudnn_parts_of(some, some, mask, kernel) ==
           orrery::detail::cudnn_parts_of(some, some, diagonal, kernel);
  };
  CHECK(same(orrery::any_mask{causal{}}, causal{}));
  CHECK(same(causal{2} & causal{-1}, causal{-1}));
  // Shards that are documents.
  const auto mask = orrery::documents{std::array{12, 8}};
  CHECK(orrery::detail::cudnn_parts_of(some, some, mask, kernel) == std::vector<cudnn_part>{{0, 12, 0, 12, false}});
  CHECK(orrery::detail::cudnn_parts_of(some, piece(12, 8), mask, kernel).empty());
}

TEST_CASE("a diagonal in too many steps is refused") {
  const orrery::striped<4> striped;
  CHECK(wrong(striped.shard(1, 2, 64), striped.shard(1, 2, 64), causal{},
              orrery::detail::cudnn_parts_of(striped.shard(1, 2, 64), striped.shard(1, 2, 64), causal{}, kernel)) ==
        "");
  CHECK(refusal(striped.shard(1, 2, 128), striped.shard(0, 2, 128), causal{}) ==
        "orrery: mask causal between queries at positions 4 to 127 and keys at 0 to 123 is not made of a "
        "few rectangles and triangles, which are all that kernel device_cudnn<bfloat16> has; orrery::device_flash has "
        "every mask, and layouts contiguous, zigzag and striped<1> suit this one");
}

TEST_CASE("as many parts as there may be, and one more") {
  const auto parts_of = [](std::int64_t length) {  // of rank 0 of two, which has every other pair of tokens
    return orrery::detail::cudnn_parts_of(orrery::striped<2>::shard(0, 2, length),
                                          orrery::contiguous::shard(0, 1, length), causal{}, kernel);
  };
  const auto most = static_cast<std::int64_t>(orrery::detail::most_cudnn_parts);
  CHECK(parts_of(4 * most).size() == orrery::detail::most_cudnn_parts);
  CHECK_THROWS_AS(static_cast<void>(parts_of(4 * most + 4)), std::invalid_argument);
}

TEST_CASE("a mask that is not its diagonal is refused") {
  struct window : causal {
    [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const { return key <= query && key > query - 3; }
    [[nodiscard]] static std::string name() { return "window"; }
  };
  CHECK(
      refusal(piece(0, 8), piece(0, 8), window{}) ==
      "orrery: mask window has the diagonal 0, but lets the query at position 3 see other keys than those up to it; a "
      "mask that is not only a diagonal must not have the member diagonal()");
}

TEST_CASE("heads are in groups that read as many key heads each, whatever the slice") {
  for (const std::int64_t group : {1, 2, 3, 4}) {
    for (const std::int64_t key_heads : {1, 2, 3, 5}) {
      const std::int64_t query_heads = group * key_heads;
      for (int slices = 1; slices <= query_heads; ++slices) {
        for (int s = 0; s < slices; ++s) {
          const orrery::detail::head_slice slice = orrery::detail::head_slice::of(s, slices, query_heads, key_heads);
          const orrery::head_map map{slice.first_query_head, slice.first_key_head, group};
          std::int64_t next = 0;
          std::int64_t groups = 0;
          orrery::detail::for_cudnn_heads(map, slice.query_heads, [&](const orrery::detail::cudnn_heads& heads) {
            REQUIRE(heads.first_query_head == next);
            REQUIRE(heads.query_heads % heads.key_heads == 0);
            for (std::int64_t h = 0; h < heads.query_heads; ++h) {
              REQUIRE(map.key_head(next + h) == heads.first_key_head + h / (heads.query_heads / heads.key_heads));
            }
            next += heads.query_heads;
            ++groups;
          });
          CHECK(next == slice.query_heads);
          CHECK(groups <= 3);
          if (slices == 1) CHECK(groups == 1);
        }
      }
    }
  }
}
