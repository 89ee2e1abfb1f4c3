// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Every mask of the library, under every layout, over topologies of each kind, against the oracle; and masks that an
// operator refuses.
#include <array>
#include <concepts>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/intervals.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/threads.hpp"

#include "attention/matrix.hpp"

using orrery::causal;
using orrery::documents;
using orrery::intervals;
using orrery::prefix;
using orrery::window;

namespace {

/// Any mask of one kind, chosen at run time, so that operators are compiled once for each kind: of masks whose rows are
/// intervals, which kernels ask for, and of the others.
template <bool rows>
class erased {
 public:
  static constexpr bool rows_are_intervals = rows;

  template <class Mask>
    requires(!std::same_as<Mask, erased>)
  explicit erased(const Mask& mask) : of_{std::make_shared<const some<Mask>>(mask)} {}

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const { return of_->visible(query, key); }
  [[nodiscard]] orrery::visibility classify(std::int64_t q0, std::int64_t q1, std::int64_t k0, std::int64_t k1) const {
    return of_->classify(q0, q1, k0, k1);
  }
  [[nodiscard]] orrery::position_interval keys_of(std::int64_t q0, std::int64_t q1) const {
    return of_->keys_of(q0, q1);
  }
  [[nodiscard]] std::string name() const { return of_->name(); }
  [[nodiscard]] std::string wrong_lengths(std::int64_t queries, std::int64_t keys) const {
    return of_->wrong_lengths(queries, keys);
  }

 private:
  struct any {
    any() = default;
    any(const any&) = delete;
    any& operator=(const any&) = delete;
    virtual ~any() = default;
    [[nodiscard]] virtual bool visible(std::int64_t query, std::int64_t key) const = 0;
    [[nodiscard]] virtual orrery::visibility classify(std::int64_t q0, std::int64_t q1, std::int64_t k0,
                                                      std::int64_t k1) const = 0;
    [[nodiscard]] virtual orrery::position_interval keys_of(std::int64_t q0, std::int64_t q1) const = 0;
    [[nodiscard]] virtual std::string name() const = 0;
    [[nodiscard]] virtual std::string wrong_lengths(std::int64_t queries, std::int64_t keys) const = 0;
  };
  template <class Mask>
  struct some final : any {
    Mask mask;

    explicit some(const Mask& m) : mask{m} {}
    [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const override { return mask.visible(query, key); }
    [[nodiscard]] orrery::visibility classify(std::int64_t q0, std::int64_t q1, std::int64_t k0,
                                              std::int64_t k1) const override {
      return mask.classify(q0, q1, k0, k1);
    }
    [[nodiscard]] orrery::position_interval keys_of(std::int64_t q0, std::int64_t q1) const override {
      return mask.keys_of(q0, q1);
    }
    [[nodiscard]] std::string name() const override { return mask.name(); }
    [[nodiscard]] std::string wrong_lengths(std::int64_t queries, std::int64_t keys) const override {
      return orrery::detail::wrong_lengths_of(mask, queries, keys);
    }
  };

  std::shared_ptr<const any> of_;
};

/// A user's mask, of which nothing is known.
struct thirds_hidden {
  [[nodiscard]] static bool visible(std::int64_t query, std::int64_t key) { return (query + key) % 3 != 0; }
  [[nodiscard]] static orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) {
    return orrery::visibility::some;
  }
  [[nodiscard]] static std::string name() { return "thirds hidden"; }
};

/// Each topology that admits the world, each layout, both policies in turn.
template <class Mask>
void check(int world, const Mask& mask, std::int64_t length, std::int64_t key_length) {
  static std::uint64_t seed = 0;
  const orrery::any_topology topologies[] = {orrery::ring{}, orrery::concentric<2>{}, orrery::ulysses{},
                                             orrery::all_gather{}};
  const conformance::any_layout layouts[] = {orrery::contiguous{}, orrery::zigzag{}, orrery::striped<1>{},
                                             orrery::striped<3>{}};
  const erased<orrery::detail::mask_of_intervals<Mask>> any{mask};
  for (const orrery::any_topology& topology : topologies) {
    for (const conformance::any_layout& layout : layouts) {
      orrery::attention_shape shape{
          .length = length, .query_heads = 8, .key_heads = 4, .head_dim = 3, .key_length = key_length};
      shape.circulate = seed % 2 == 0 ? orrery::pass::circulate_keys : orrery::pass::circulate_queries;
      if (topology.unsupported_reason(world) != nullptr) continue;
      if (topology.unsupported_reason(world, shape.circulate) != nullptr)
        shape.circulate = orrery::pass::circulate_keys;
      attention_test::expect_none(
          conformance::failures<orrery::any_topology, orrery::flash<double>, orrery::threads::world>(
              attention_test::on_threads, world, shape, any, layout, ++seed, topology),
          attention_test::describe(topology.name(), world, "flash<double>", any.name(), layout.name(), shape));
    }
  }
}

/// Queries and keys of one sequence, in which documents leave three tokens of padding.
void check_self_attention(int world) {
  constexpr std::int64_t length = 59;
  const documents batch{std::array{1, 17, 2, 30, 6}};
  check(world, window{.left = 5, .right = 0}, length, length);
  check(world, window{.left = 0, .right = 9}, length, length);
  check(world, causal{} & window{.left = 7}, length, length);
  check(world, causal{-20} & window{.left = 40}, length, length);  // the first queries see nothing
  check(world, prefix{11}, length, length);
  check(world, batch, length, length);
  check(world, batch & causal{}, length, length);
  check(world, batch & causal{} & window{.left = 4}, length, length);
  check(world, batch & prefix{3}, length, length);
  check(world, batch & causal{} & thirds_hidden{}, length, length);
  std::vector<int> first, end;
  for (int key = 0; key < 57; ++key) {
    first.push_back(key * 7 % 31);
    end.push_back(key % 5 == 0 ? key * 7 % 31 : 31 + key % 29);
  }
  check(world, intervals{first, end}, length, length);
  check(world, intervals{first, end} & causal{}, length, length);
}

/// Documents with other numbers of keys than of queries, both ways.
void check_cross_attention(int world) {
  const documents batch{std::array{3, 9, 1, 10}, std::array{8, 2, 1, 20}};
  check(world, batch & causal{}, 23, 31);
  check(world, batch.top_left() & causal{} & window{.left = 3}, 25, 33);
  check(world, causal::bottom_right(13, 61), 13, 61);
}

}  // namespace

TEST_CASE("masks: one rank") {
  check_self_attention(1);
  check_cross_attention(1);
}
TEST_CASE("masks: two ranks") {
  check_self_attention(2);
  check_cross_attention(2);
}
TEST_CASE("masks: three ranks") {
  check_self_attention(3);
  check_cross_attention(3);
}
TEST_CASE("masks: five ranks") { check_self_attention(5); }
TEST_CASE("masks: eight ranks") {
  check_self_attention(8);
  check_cross_attention(8);
}

TEST_CASE("masks: fewer tokens than ranks, and one") {
  for (const int world : {1, 3, 8}) {
    check(world, documents{std::array{1}} & causal{}, 1, 1);
    check(world, documents{std::array{1, 2, 1}} & causal{}, 5, 5);
    check(world, documents{std::array{1, 1}, std::array{3, 1}} & causal{}, 2, 4);
    check(world, window{.left = 0, .right = 0}, 3, 3);
    check(world, prefix{2}, 3, 2);
    check(world, intervals{std::array{0, 1, 2}, std::array{2, 1, 3}}, 3, 3);
  }
}

TEST_CASE("a packed batch as users write it") {
  const std::vector<int> lengths{40, 3, 21, 8};
  const auto mask = documents{lengths} & causal{} & window{.left = 15};
  const orrery::attention_shape shape{.length = 72, .query_heads = 2, .head_dim = 4};
  attention_test::expect_none(conformance::failures<orrery::ring, orrery::flash<double>, orrery::threads::world>(
                                  attention_test::on_threads, 4, shape, mask, orrery::zigzag{}),
                              mask.name());
}

TEST_CASE("masks that do not suit an operator are refused on every rank, by name") {
  const auto said = [](const auto& mask, std::int64_t length) {
    std::string all;
    orrery::threads::run(2, [&](auto& world) {
      std::string text = "no error";
      try {
        const orrery::attention<orrery::ring, orrery::flash<double>> attend{
            world, {.length = length, .head_dim = 2}, mask};
      } catch (const std::invalid_argument& e) {
        text = e.what();
      }
      for (const std::string& of_rank : world.all_gather(text)) {
        if (world.rank() == 0) all += of_rank + "\n";
      }
    });
    return all;
  };
  const documents batch{std::array{20, 7}};
  CHECK(said(batch & causal{}, 27) == "no error\nno error\n");
  const std::string too_long = said(batch & causal{}, 26);
  CHECK(too_long.find("mask documents<2 of 27 tokens, digest ") != std::string::npos);
  CHECK(too_long.find("the 2 documents have 27 queries, but length is 26; leave out documents") != std::string::npos);
  CHECK(too_long.find("no error") == std::string::npos);
  CHECK(said(window{.left = -3}, 9).find("window::left is -3, expected at least 0") != std::string::npos);

  struct careless : attention_test::band {
    [[nodiscard]] static orrery::visibility classify(std::int64_t q0, std::int64_t, std::int64_t k0, std::int64_t) {
      return q0 == k0 ? orrery::visibility::all : orrery::visibility::some;
    }
  };
  const std::string broken = said(careless{}, 50);
  CHECK(broken.find("mask band 9: classify says that of the queries ") != std::string::npos);
  CHECK(broken.find(" all pairs are visible, but visible(") != std::string::npos);
  CHECK(broken.find("no error") == std::string::npos);

  // Ranks that pack other documents.
  std::string disagreement;
  try {
    orrery::threads::run(2, [&](auto& world) {
      const orrery::attention<orrery::ring, orrery::flash<double>> attend{
          world, {.length = 27, .head_dim = 2}, documents{std::array{20 - world.rank(), 7 + world.rank()}}};
    });
  } catch (const std::exception& e) {
    disagreement = e.what();
  }
  CHECK(disagreement.find("mask") != std::string::npos);
  CHECK(disagreement.find("documents<2 of 27 tokens, digest ") != std::string::npos);
}
