// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/tune/balanced.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/chunked.hpp"
#include "orrery/layout/per_document.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"

#include "support/any.hpp"
#include "support/refusal.hpp"
#include "support/relative.hpp"

namespace {

/// The imbalance by counting every pair.
template <class Mask, class Layout>
double counted_imbalance(const Mask& mask, const Layout& layout, int world, std::int64_t length, std::int64_t keys) {
  std::int64_t all = 0, most = 0;
  for (int rank = 0; rank < world; ++rank) {
    std::int64_t pairs = 0;
    for (int c = 0; c < layout.chunks(world, length); ++c) {
      const orrery::segments chunk = layout.chunk(rank, c, world, length);
      for (std::int64_t i = 0; i < chunk.tokens(); ++i) {
        for (std::int64_t key = 0; key < keys; ++key) pairs += mask.visible(chunk.position(i), key) ? 1 : 0;
      }
    }
    all += pairs;
    most = pairs > most ? pairs : most;
  }
  return all == 0 ? 1 : static_cast<double>(most) * world / static_cast<double>(all);
}

template <class Mask>
void check_balance(const Mask& mask, int world, std::int64_t length, std::int64_t keys = 0) {
  INFO(mask.name(), ", ", world, " ranks, ", length, " tokens, ", keys, " keys");
  const orrery::balance_options options{.length = length, .key_length = keys};
  const orrery::dispatched layout = orrery::balanced(mask, world, options);
  const double imbalance = orrery::imbalance(mask, layout, world, options);
  CHECK(imbalance == relative(counted_imbalance(mask, layout, world, length, keys > 0 ? keys : length)));
  CHECK(imbalance <= 1.05);
  CHECK(layout == orrery::balanced(mask, world, options));
}

/// A mask that answers nothing but pairs, and `some`.
struct silent : any::mask {
  [[nodiscard]] static orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) {
    return orrery::visibility::some;
  }
};

std::string message_of(int world, const orrery::balance_options& options) {
  return refusal_of([&] { static_cast<void>(orrery::balanced(orrery::causal{}, world, options)); });
}

}  // namespace

TEST_CASE("every mask is balanced, in every world") {
  const std::vector<std::int64_t> lengths{700, 3, 41, 256};
  for (const int world : {1, 2, 3, 7, 8}) {
    check_balance(orrery::full{}, world, 1000);
    check_balance(orrery::causal{}, world, 1000);
    check_balance(orrery::causal{}, world, 997);
    check_balance(orrery::causal{200}, world, 800, 1000);
    check_balance(orrery::causal{} & orrery::window{.left = 99}, world, 1000);
    check_balance(orrery::prefix{300}, world, 1000);
    check_balance(orrery::documents{lengths} & orrery::causal{}, world, 1000);
  }
}

TEST_CASE("a causal mask is balanced by zigzag, and a full one by contiguous pieces") {
  for (const int world : {2, 3, 4, 16}) {
    const std::int64_t length = world * 100;
    const auto same_shards = [&](const orrery::dispatched& layout, const auto& as) {
      bool same = true;
      for (int rank = 0; rank < world; ++rank) {
        for (int c = 0; c < layout.chunks(world, length); ++c)
          same = same && layout.chunk(rank, c, world, length) == as.chunk(rank, c, world, length);
      }
      return same;
    };
    const orrery::dispatched causal = orrery::balanced(orrery::causal{}, world, {.length = length});
    CHECK(causal.chunks(world, length) == 2);
    CHECK(same_shards(causal, orrery::zigzag{}));
    const orrery::dispatched full = orrery::balanced(orrery::full{}, world, {.length = length});
    CHECK(full.chunks(world, length) == 1);
    CHECK(same_shards(full, orrery::chunked{orrery::contiguous{}, 1}));
  }
}

TEST_CASE("masks that say nothing of rows are estimated") {
  const any::mask causal{.ahead = 0};
  const auto exactly = orrery::imbalance(orrery::causal{}, orrery::contiguous{}, 8, {.length = 4096});
  CHECK(exactly == relative(1.875, 0.01));
  CHECK(orrery::imbalance(causal, orrery::contiguous{}, 8, {.length = 4096}) == relative(exactly, 0.02));
  CHECK(orrery::imbalance(silent{causal}, orrery::contiguous{}, 8, {.length = 4096}) == relative(exactly, 0.02));
  const orrery::dispatched layout = orrery::balanced(silent{causal}, 8, {.length = 4096});
  CHECK(orrery::imbalance(orrery::causal{}, layout, 8, {.length = 4096}) <= 1.06);
}

TEST_CASE("the imbalance of the library's layouts") {
  const orrery::balance_options of{.length = 1200};
  CHECK(orrery::imbalance(orrery::causal{}, orrery::zigzag{}, 4, of) == relative(1, 0.001));
  CHECK(orrery::imbalance(orrery::causal{}, orrery::striped<1>{}, 4, of) == relative(1, 0.01));
  CHECK(orrery::imbalance(orrery::full{}, orrery::contiguous{}, 5, of) == 1);
  const std::vector<std::int64_t> lengths{1000, 200};
  const auto mask = orrery::documents{lengths} & orrery::causal{};
  CHECK(orrery::imbalance(mask, orrery::per_document<orrery::zigzag>{lengths}, 4, of) == relative(1, 0.01));
  CHECK(orrery::imbalance(mask, orrery::contiguous{}, 4, of) > 1.5);
  CHECK(orrery::imbalance(orrery::window{.left = -1, .right = -1}, orrery::contiguous{}, 4, of) >= 1);
}

TEST_CASE("segments whose last run is shorter, and queries that see nothing, are counted as they are") {
  const orrery::balance_options of{.length = 100};
  const orrery::chunked striped{orrery::striped<7>{}, 1};
  CHECK(orrery::imbalance(orrery::causal{}, striped, 3, of) ==
        relative(counted_imbalance(orrery::causal{}, striped, 3, 100, 100)));
  const orrery::chunked contiguous{orrery::contiguous{}, 1};
  CHECK(orrery::imbalance(orrery::causal{-30}, contiguous, 3, of) ==
        relative(counted_imbalance(orrery::causal{-30}, contiguous, 3, 100, 100)));
}

TEST_CASE("a few rows of a mask that says nothing of rectangles are counted exactly") {
  // 4, 3 and 3 tokens.
  CHECK(orrery::imbalance(silent{}, orrery::contiguous{}, 3, {.length = 10}) == relative(1.2));
}

TEST_CASE("shards are cut into no more pieces than it takes") {
  CHECK(orrery::balanced(orrery::causal{}, 4, {.length = 1000, .tolerance = 2000}).chunks(4, 1000) == 1);
  // One query sees one key: more pieces balance nothing.
  CHECK(orrery::balanced(orrery::causal{-7}, 2, {.length = 8}).chunks(2, 8) == 1);
}

TEST_CASE("pieces that were asked for are kept") {
  const orrery::dispatched layout = orrery::balanced(orrery::causal{}, 4, {.length = 1000, .chunks = 5});
  CHECK(layout.chunks(4, 1000) == 5);
  CHECK(orrery::balanced(orrery::causal{}, 4, {.length = 3}).chunks(4, 3) == 1);  // fewer tokens than ranks
}

TEST_CASE("arguments out of range are refused") {
  CHECK(message_of(0, {.length = 10}) == "orrery: balanced: world is 0, expected at least 1");
  CHECK(message_of(2, {}) == "orrery: balanced: length is 0, expected 1 to 2^31");
  CHECK(message_of(2, {.length = 10, .key_length = -1}) == "orrery: balanced: key_length is -1, expected 0 to 2^31");
  CHECK(message_of(2, {.length = 10, .chunks = -1}) == "orrery: balanced: chunks is -1, expected 0 to 65535");
  CHECK(message_of(2, {.length = 10, .tolerance = 999}) ==
        "orrery: balanced: tolerance is 999, expected at least 1000, thousandths of the average");
  CHECK(message_of(1000, {.length = 10, .chunks = 1000}) ==
        "orrery: balanced: chunks is 1000, which are 1000000 on all ranks, expected at most 32768");
  const std::vector<std::int64_t> too_long{60, 60};
  CHECK(refusal_of([&] {
          static_cast<void>(orrery::balanced(orrery::documents{too_long}, 4, {.length = 64}));
        }).find("orrery: balanced: mask documents<2 of 120 tokens") == 0);
  const std::string of_layout = refusal_of([] {
    static_cast<void>(orrery::imbalance(
        orrery::full{}, orrery::per_document<orrery::zigzag>{std::vector<std::int64_t>{100}}, 2, {.length = 10}));
  });
  CHECK(of_layout.find("orrery: imbalance: layout per_document<zigzag>") == 0);
}
