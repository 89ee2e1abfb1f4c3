// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Results of a rank to which its program adds nothing: they are cleared, and said to be final.
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/run/executor.hpp"
#include "orrery/schedule/derive_backward.hpp"
#include "orrery/tensor/float16.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/verify/verify.hpp"

#include "support/planned.hpp"

using orrery::schedule::list;
using orrery::schedule::relation;

namespace {

/// Each rank gets the keys that its queries see from their owners, and computes all in one tile; in `slices` slices.
struct direct {
  relation visible;
  int cut = 1;

  [[nodiscard]] int slices(int) const { return cut; }
  [[nodiscard]] orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world, orrery::pass::forward, cut};
    const auto cut_all = [&](orrery::schedule::blocks b) {
      b.slices = cut;
      return b;
    };
    for (int other = 0; other < world; ++other) {
      const bool sends = other != rank && visible(other, rank);
      const bool receives = other != rank && visible(rank, other);
      schedule.begin_exchange(sends ? other : orrery::schedule::no_rank, receives ? other : orrery::schedule::no_rank);
      schedule.send(cut_all(orrery::key(rank)));
      schedule.receive(cut_all(orrery::key(other)));
    }
    for (int slice = 0; slice < cut; ++slice) {
      schedule.next_step();
      for (int other = 0; other < world; ++other) {
        if (!visible(rank, other)) continue;
        schedule.add_to_tile(orrery::key(other).in_slice(slice));
      }
      for (int other = 0; other < world; ++other) {
        if (!visible(rank, other)) continue;
        schedule.add_to_tile(orrery::query(rank).in_slice(slice));
        break;
      }
    }
    return schedule;
  }
};

template <class Kernel>
std::string failures(const orrery::causal& mask, int world, const orrery::attention_shape& shape, int slices,
                     std::uint64_t seed) {
  const relation visible =
      planned::relation_of(mask, orrery::contiguous{}, world, shape.length, shape.key_length.value_or(shape.length));
  const auto forward = orrery::programs_of(direct{visible, slices}, world);
  const auto backward = orrery::programs_of(direct{visible, slices}, world, orrery::pass::circulate_keys);
  REQUIRE(orrery::verify(forward, visible).ok());
  REQUIRE(orrery::verify(backward, visible).ok());
  return planned::failures<Kernel>(forward, backward, shape, mask, orrery::contiguous{}, seed);
}

}  // namespace

TEST_CASE_TEMPLATE("results to which nothing is added are those of no pair", Kernel, orrery::flash<double>,
                   orrery::flash<float>, orrery::flash<orrery::bfloat16>, orrery::reference<float>) {
  std::uint64_t seed = 0;
  for (const std::int64_t offset : {-30, -79, -80, -1000, 0}) {
    for (const int slices : {1, 2, 4}) {  // of 4 query heads and 2 key heads: slices share key heads
      CAPTURE(offset);
      CAPTURE(slices);
      CHECK(failures<Kernel>(orrery::causal{offset}, 4, {.length = 80, .query_heads = 4, .key_heads = 2, .head_dim = 4},
                             slices, ++seed) == "");
    }
  }
  CHECK(failures<Kernel>(orrery::causal{-1000}, 1, {.batch = 2, .length = 9, .query_heads = 3, .head_dim = 4}, 1,
                         ++seed) == "");
}

namespace {

/// An interaction that writes down what it is called with.
struct recording {
  static constexpr std::array operands{orrery::schedule::side::query, orrery::schedule::side::key};
  using context = orrery::host_context;

  std::vector<std::string> calls;

  [[nodiscard]] static std::int64_t operand_bytes(int, const orrery::schedule::block&) { return 8; }
  [[nodiscard]] static std::int64_t partial_bytes(const orrery::schedule::block&) { return 8; }
  static void prepare(const context&) {}
  static void pack(const context&, int, const orrery::schedule::block&, std::byte*) {}
  static void interact(const context&, std::span<const orrery::detail::tile_block>,
                       std::span<const orrery::detail::tile_block>) {}
  static void merge(const context&, const orrery::schedule::block&, std::byte*, const std::byte*, bool) {}
  void finish(const context&, const orrery::schedule::block& own) { note("finish ", own); }

 protected:
  void note(const std::string& what, const orrery::schedule::block& own) {
    calls.push_back(what + (own.side == orrery::schedule::side::query ? "q" : "k") + std::to_string(own.shard) + "." +
                    std::to_string(own.slice));
  }
};
struct clearing : recording {
  void clear(const context&, const orrery::schedule::block& own) { note("clear ", own); }
};

orrery::program of_nothing(int rank, int world, orrery::pass p, int slices) {
  orrery::builder schedule{rank, world, p, slices};
  orrery::program one = schedule;
  finish(one);
  return one;
}

}  // namespace

TEST_CASE("each is cleared, then finished, in every call") {
  orrery::threads::run(2, [](auto& on) {
    const orrery::program nothing = of_nothing(on.rank(), 2, orrery::pass::circulate_keys, 2);
    clearing work;
    orrery::executor run{on, nothing, work};
    const std::string r = std::to_string(on.rank());
    const std::vector<std::string> expected{"clear q" + r + ".0",  "finish q" + r + ".0", "clear q" + r + ".1",
                                            "finish q" + r + ".1", "clear k" + r + ".0",  "finish k" + r + ".0",
                                            "clear k" + r + ".1",  "finish k" + r + ".1"};
    for (int call = 0; call < 2; ++call) {
      work.calls.clear();
      run.run();
      if (work.calls != expected) throw std::logic_error{std::to_string(work.calls.size()) + " calls"};
    }
  });
}

TEST_CASE("an interaction that cannot clear is refused what it would have to, and no more") {
  std::string said;
  try {
    orrery::threads::run(1, [&](auto& on) {
      recording work;
      const orrery::program nothing = of_nothing(0, 1, orrery::pass::forward, 1);
      orrery::executor run{on, nothing, work};
    });
  } catch (const std::invalid_argument& e) {
    said = e.what();
  }
  CHECK(said ==
        "orrery: executor: the program adds nothing to the rank's own query shard 0, whose result must be cleared: "
        "give the interaction clear(context, block), or run a schedule of every pair");
  CHECK_NOTHROW(orrery::threads::run(1, [&](auto& on) {
    recording work;
    orrery::builder schedule{0, 1};
    schedule.interact(orrery::query(0), orrery::key(0));
    orrery::program one = schedule;
    finish(one);
    orrery::executor run{on, one, work};
    run.run();
    if (work.calls != std::vector<std::string>{"finish q0.0"}) throw std::logic_error{"cleared"};
  }));
}
