// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The executor with an interaction of a user's own: every pair of tokens meets exactly once, whatever the topology.
#include "orrery/run/executor.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include "orrery/transport/threads.hpp"
#include "orrery/verify/verify.hpp"

#include "run/pairs.hpp"
#include "support/topologies.hpp"

TEST_CASE_TEMPLATE("every pair meets once, in every slice, in every pass", Topology, ORRERY_TEST_TOPOLOGIES) {
  for (const int world : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16}) {
    for (const orrery::pass p :
         {orrery::pass::forward, orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
      if (orrery::unsupported_reason(Topology{}, world, p) != nullptr) continue;
      INFO(orrery::name_of(Topology{}), " over ", world, ", ", orrery::name_of(p));
      for (const std::int64_t length : {37, 5}) {
        CHECK_NOTHROW(orrery::threads::run(world, [&](auto& on) { pairs::check_rank<Topology>(on, p, length, 23); }));
      }
    }
  }
}

namespace {

/// A ring that forgets its last tile, and does not hide it from `work`.
struct forgetful {
  constexpr orrery::program program(int rank, int world) const {
    orrery::program p = my_ring{}.program(rank, world);
    if (rank == 1) p.steps.back().tile = {{0, 0}, {0, 0}};
    return p;
  }
};

}  // namespace

TEST_CASE("a pair that is missing is found by the verifier, and by the meetings alike") {
  CHECK_FALSE(orrery::verify(forgetful{}, 3).ok());
  std::string found;
  try {
    orrery::threads::run(3, [](auto& on) { pairs::check_rank<forgetful>(on, orrery::pass::forward, 9, 9); });
  } catch (const std::logic_error& e) {
    found = e.what();
  }
  CHECK(found == "query token 3 in slice 0 has met 6 of 9");
}

namespace {

/// An interaction that does nothing, and throws where it is told to: a number, or an exception with a message.
struct throwing {
  enum place { nowhere, prepare_, pack_, interact_, merge_, finish_ };
  static constexpr std::array operands{orrery::schedule::side::query, orrery::schedule::side::key};
  using context = orrery::host_context;

  place where = nowhere;
  bool number = false;

  void at(place here) const {
    if (here != where) return;
    if (number) throw 42;
    throw std::runtime_error{"the kernel's own message"};
  }
  [[nodiscard]] static std::int64_t operand_bytes(int, const orrery::schedule::block&) { return 8; }
  [[nodiscard]] static std::int64_t partial_bytes(const orrery::schedule::block&) { return 8; }
  void prepare(const context&) const { at(prepare_); }
  void pack(const context&, int, const orrery::schedule::block&, std::byte* to) const {
    std::fill_n(to, 8, std::byte{});
    at(pack_);
  }
  void interact(const context&, std::span<const orrery::detail::tile_block> queries,
                std::span<const orrery::detail::tile_block> keys) const {
    for (const auto blocks : {queries, keys}) {
      for (const orrery::detail::tile_block& one : blocks) {
        if (one.partial != nullptr) std::fill_n(one.partial, 8, std::byte{});
      }
    }
    at(interact_);
  }
  void merge(const context&, const orrery::schedule::block&, std::byte*, const std::byte*, bool) const { at(merge_); }
  void finish(const context&, const orrery::schedule::block&) const { at(finish_); }
};

}  // namespace

TEST_CASE("whatever the interaction throws, wherever: the other rank fails with this rank's name") {
  using place = throwing::place;
  for (const place where : {place::prepare_, place::pack_, place::interact_, place::merge_, place::finish_}) {
    for (const bool number : {false, true}) {
      INFO("place ", static_cast<int>(where), number ? ", a number" : ", an exception");
      std::string said = "nothing";
      std::string thrown = "nothing";
      orrery::threads::run(2, [&](orrery::threads::world& on) {
        // The keys' gradients come home, so that all of it happens on both ranks.
        const orrery::program steps = orrery::program_of(orrery::ring{}, on.rank(), 2, orrery::pass::circulate_keys);
        throwing work;
        if (on.rank() == 1) work.where = where;
        work.number = number;
        orrery::executor run{on, steps, work};
        try {
          run.run();
          run.run();  // the first call may have needed no more of rank 1
        } catch (const orrery::transport_error& e) {
          if (on.rank() == 0) said = e.what();
        } catch (const std::runtime_error& e) {
          if (on.rank() == 1) thrown = e.what();
        } catch (const int value) {
          if (on.rank() == 1) thrown = std::to_string(value);
        }
      });
      CHECK(thrown == (number ? "42" : "the kernel's own message"));
      CHECK(said.find("rank 1 failed in step ") != std::string::npos);
      CHECK((said.find(": the kernel's own message") != std::string::npos) == !number);
    }
  }
}

TEST_CASE("the workspace holds the slots and the packed operands, each on cache lines of its own") {
  orrery::threads::run(4, [](auto& on) {
    const orrery::program steps = orrery::program_of(orrery::ring{}, on.rank(), 4, orrery::pass::forward);
    pairs::work local{{40, 4}, {44, 4}, steps};
    orrery::executor run{on, steps, local};
    // Two key slots and one packed key operand of 11 names, 88 bytes, each rounded up to 128.
    if (run.workspace_bytes() != 3 * 128) throw std::logic_error{std::to_string(run.workspace_bytes())};
  });
}
