// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Schedules that are data against the oracle: plans of packed documents.
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/mask/documents.hpp"
#include "orrery/topology/precomputed.hpp"
#include "orrery/tune/pack.hpp"

#include "attention/matrix.hpp"

namespace {

void check_packed(const std::vector<std::int64_t>& lengths, int world, const orrery::pack_options& options,
                  orrery::attention_shape shape) {
  static std::uint64_t seed = 0;
  shape.length = options.length;
  for (const std::int64_t one : lengths) shape.length += options.length == 0 ? one : 0;
  const orrery::precomputed plan{"packed", orrery::pack(lengths, world, options).work};
  const orrery::documents mask{lengths};
  if (options.causal) {
    attention_test::check_policies<orrery::flash<double>>(plan, world, shape, mask & orrery::causal{},
                                                          orrery::contiguous{}, seed);
  } else {
    attention_test::check_policies<orrery::flash<double>>(plan, world, shape, mask, orrery::contiguous{}, seed);
  }
}

}  // namespace

TEST_CASE("plans of packed documents run right in every world, with all kinds of heads") {
  for (const int world : {1, 2, 3, 4, 5, 8}) {
    for (const int chunks : {1, 3, 4}) {
      for (const bool causal : {true, false}) {
        check_packed({61, 5, 1, 20, 3}, world, {.causal = causal, .chunks = chunks},
                     {.query_heads = 4, .key_heads = 2, .head_dim = 3});
        check_packed({3, 40, 2}, world, {.length = 50, .causal = causal, .chunks = chunks},
                     {.batch = 2, .query_heads = 3, .head_dim = 4, .value_dim = 2});
        check_packed({1, 1}, world, {.causal = causal, .chunks = chunks}, {.query_heads = 1, .head_dim = 2});
      }
    }
  }
}

TEST_CASE("a plan for other documents, another world or another layout is refused before anything is sent") {
  const std::vector<std::int64_t> lengths{61, 5, 20};
  const orrery::precomputed plan{"packed", orrery::pack(lengths, 3).work};
  const auto message_of = [&](int world, const auto& mask, const auto& layout) {
    std::string message;
    try {
      orrery::threads::run(world, [&](auto& on) {
        const orrery::attention<orrery::precomputed, orrery::flash<float>> attend{
            on, {.length = 86, .query_heads = 2, .head_dim = 4}, mask, layout, plan};
      });
    } catch (const std::invalid_argument& e) {
      message = e.what();
    }
    return message;
  };
  const auto contains = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  const orrery::documents mask{lengths};
  CHECK(message_of(3, mask & orrery::causal{}, orrery::contiguous{}) == "");
  CHECK(contains(message_of(2, mask & orrery::causal{}, orrery::contiguous{}),
                 "topology packed over 2 ranks is precomputed for another number of ranks; plan again"));
  CHECK(contains(message_of(3, orrery::documents{std::vector{20, 66}} & orrery::causal{}, orrery::contiguous{}),
                 "never meets chunk"));
  CHECK(contains(message_of(3, mask & orrery::causal{}, orrery::zigzag{}), "never meets chunk"));
  CHECK(contains(message_of(3, mask & orrery::causal{}, orrery::zigzag{}), "orrery::pack takes lengths"));
}
