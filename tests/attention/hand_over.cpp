// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Operands that are handed over one after the other leave one after the other, and results are told of when they are
// final. That they are right is part of the conformance suite, whose every second call is made so.
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/run/started_forward.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/threads.hpp"

#include "any.hpp"
#include "conformance.hpp"

namespace {

using kernel = orrery::flash<float>;
using orrery::hand_over;
using orrery::output_part;
using tensors = conformance::rank_tensors<kernel>;

constexpr int world_size = 4;

orrery::attention_shape shape_with(hand_over how) {
  return {.length = 20, .query_heads = 8, .key_heads = 4, .head_dim = 6, .value_dim = 3, .hand_over = how};
}

template <class Attention>
tensors problem_for(const Attention& attend) {
  const auto p = oracle::random_problem<float>(conformance::oracle_shape(attend.shape()), 1);
  return tensors{p, attend.query_positions(), attend.key_positions(), {}};
}

/// Bytes that rank 0 has sent after each of queries, keys, values and finish.
template <class Topology>
std::vector<std::int64_t> bytes_sent_after_each_call(hand_over how) {
  std::vector<std::int64_t> sent;
  orrery::threads::run(world_size, [&](auto& world) {
    orrery::counted counted{world};
    orrery::attention<Topology, kernel> attend{counted, shape_with(how)};
    tensors mine = problem_for(attend);
    std::vector<std::int64_t> after;
    auto call = attend.begin_forward(mine.out.view(), mine.lse.view());
    call.queries(mine.q.view());
    after.push_back(counted.bytes_sent());
    call.keys(mine.k.view());
    after.push_back(counted.bytes_sent());
    call.values(mine.v.view());
    after.push_back(counted.bytes_sent());
    call.finish();
    after.push_back(counted.bytes_sent());
    if (world.rank() == 0) sent = after;
  });
  return sent;
}

// Of a rank's shard of 5 tokens.
constexpr std::int64_t q_bytes = 5 * 8 * 6 * 4;
constexpr std::int64_t k_bytes = 5 * 4 * 6 * 4;
constexpr std::int64_t v_bytes = 5 * 4 * 3 * 4;
constexpr std::int64_t out_bytes = 5 * 8 * (3 + 1) * 4;

}  // namespace

TEST_CASE("each tensor leaves when it is given") {
  using bytes = std::vector<std::int64_t>;
  constexpr std::int64_t q = q_bytes, k = k_bytes, v = v_bytes, o = out_bytes;
  // Three quarters of the heads go to other ranks, and three quarters of their outputs come from there.
  CHECK(bytes_sent_after_each_call<orrery::ulysses>(hand_over::by_tensor) ==
        bytes{q / 4 * 3, (q + k) / 4 * 3, (q + k + v) / 4 * 3, (q + k + v + o) / 4 * 3});
  CHECK(bytes_sent_after_each_call<orrery::ulysses>(hand_over::together) ==
        bytes{0, 0, (q + k + v) / 4 * 3, (q + k + v + o) / 4 * 3});
  CHECK(bytes_sent_after_each_call<orrery::ring>(hand_over::by_tensor) == bytes{0, k, k + v, 3 * (k + v)});
  CHECK(bytes_sent_after_each_call<orrery::ring>(hand_over::together) == bytes{0, 0, k + v, 3 * (k + v)});
  // The row gathers queries, the column keys. Queries that travel alone need no splitting.
  CHECK(bytes_sent_after_each_call<orrery::concentric<2, 2>>(hand_over::by_tensor) ==
        bytes{q, q + k, q + k + v, q + k + v + o});
  CHECK(bytes_sent_after_each_call<orrery::concentric<2, 2>>(hand_over::together) ==
        bytes{q, q, q + k + v, q + k + v + o});
}

TEST_CASE("every head of every result is said to be final, once") {
  using kernel_of_sums = orrery::flash<orrery::bfloat16>;
  for (const orrery::any_topology& topology : any::topologies()) {
    const int world = topology.refuses(8) == nullptr ? 8 : 9;
    // Slices that share key heads, and slices that do not, in a type that is not the one that is summed.
    for (const std::int64_t key_heads : {3, 9}) {
      const orrery::attention_shape shape{.length = 20, .query_heads = 9, .key_heads = key_heads, .head_dim = 4};
      orrery::threads::run(world, [&](auto& on) {
        orrery::attention<orrery::any_topology, kernel_of_sums> attend{on, shape, orrery::full{}, orrery::contiguous{},
                                                                       topology};
        const auto p = oracle::random_problem<orrery::bfloat16>(conformance::oracle_shape(shape), 1);
        conformance::rank_tensors<kernel_of_sums> mine{p, attend.query_positions(), attend.key_positions(), {}};
        std::vector<int> final_queries(9, 0), final_keys(static_cast<std::size_t>(key_heads), 0);
        const auto count = [&](const output_part& part) {
          auto& final = part.side == orrery::side::query ? final_queries : final_keys;
          for (std::int64_t h = 0; h < part.heads; ++h) ++final.at(static_cast<std::size_t>(part.first_head + h));
        };
        const auto expect = [&](const std::vector<int>& times, int expected, const char* what) {
          if (times != std::vector<int>(times.size(), expected)) throw std::logic_error{topology.name() + what};
        };
        attend.forward(mine.q.view(), mine.k.view(), mine.v.view(), mine.out.view(), mine.lse.view(), count);
        expect(final_queries, 1, ": forward");
        attend.backward(mine.q.view(), mine.k.view(), mine.v.view(), mine.out.view(), mine.lse.view(),
                        mine.grad_out.view(), mine.grad_q.view(), mine.grad_k.view(), mine.grad_v.view(), count);
        expect(final_queries, 2, ": backward, queries");
        expect(final_keys, 1, ": backward, keys");
      });
    }
  }
}

namespace {

/// What a call on a started forward, or beside it, says on a single rank.
template <class Call>
std::string refusal(const Call& call_wrongly) {
  std::string said = "nothing";
  orrery::threads::run(1, [&](auto& world) {
    orrery::attention<orrery::ring, kernel> attend{world, shape_with(hand_over::by_tensor)};
    tensors mine = problem_for(attend);
    try {
      auto call = attend.begin_forward(mine.out.view(), mine.lse.view());
      call_wrongly(attend, call, mine);
    } catch (const std::exception& e) {
      said = e.what();
    }
  });
  return said;
}

}  // namespace

TEST_CASE("another order is refused") {
  CHECK(
      refusal([](auto&, auto& call, auto& mine) { call.keys(mine.k.view()); }) ==
      "orrery: attention::begin_forward: keys was called, expected queries; call queries, keys, values and finish, in "
      "this order");
  CHECK(
      refusal([](auto&, auto& call, auto& mine) {
        call.queries(mine.q.view());
        call.queries(mine.q.view());
      }) ==
      "orrery: attention::begin_forward: queries was called, expected keys; call queries, keys, values and finish, in "
      "this order");
  CHECK(refusal([](auto&, auto& call, auto& mine) {
          call.queries(mine.q.view());
          call.keys(mine.k.view());
          call.finish();
        }) ==
        "orrery: attention::begin_forward: finish was called, expected values; call queries, keys, values and finish, "
        "in this order");
  CHECK(refusal([](auto&, auto& call, auto& mine) {
          call.queries(mine.q.view());
          call.keys(mine.k.view());
          call.values(mine.v.view());
          call.finish();
          call.finish();
        }) ==
        "orrery: attention::begin_forward: finish was called, expected no more, since this forward is over; call "
        "queries, keys, values and finish, in this order");
}

TEST_CASE("a view that does not fit is refused before anything is sent, and may be given again") {
  orrery::threads::run(world_size, [&](auto& world) {
    orrery::attention<orrery::ulysses, kernel> attend{world, shape_with(hand_over::by_tensor)};
    tensors mine = problem_for(attend);
    auto call = attend.begin_forward(mine.out.view(), mine.lse.view());
    std::string said;
    try {
      call.queries(mine.k.view());
    } catch (const std::invalid_argument& e) {
      said = e.what();
    }
    if (said != "orrery: attention::begin_forward: q has heads 4, expected 8") throw std::logic_error{said};
    call.queries(mine.q.view());
    call.keys(mine.k.view());
    call.values(mine.v.view());
    call.finish();
  });
}

TEST_CASE("no other call while a forward is under way") {
  const auto forward = [](auto& attend, auto&, auto& mine) { mine.forward(attend); };
  CHECK(refusal(forward) ==
        "orrery: attention::forward: a forward was begun on this operator and is not finished; finish it first, or use "
        "another operator");
  const auto again = [](auto& attend, auto&, auto& mine) {
    const auto second = attend.begin_forward(mine.out.view(), mine.lse.view());
  };
  CHECK(refusal(again) ==
        "orrery: attention::begin_forward: a forward was begun on this operator and is not finished; finish it first, "
        "or use another operator");
}

TEST_CASE("whoever leaves a forward that it has begun is named on all ranks") {
  std::vector<std::string> said(world_size);
  orrery::threads::run(world_size, [&](auto& world) {
    orrery::attention<orrery::ring, kernel> attend{world, shape_with(hand_over::by_tensor)};
    tensors mine = problem_for(attend);
    std::string& mine_said = said[static_cast<std::size_t>(world.rank())];
    try {
      auto call = attend.begin_forward(mine.out.view(), mine.lse.view());
      if (world.rank() != 2) {
        call.queries(mine.q.view());
        call.keys(mine.k.view());
        call.values(mine.v.view());
        call.finish();
      }
    } catch (const orrery::transport_error& e) {
      mine_said = e.what();
    }
  });
  CHECK(said[2].empty());
  for (const int rank : {0, 1, 3}) {
    CHECK(said[static_cast<std::size_t>(rank)].find("rank 2") != std::string::npos);
    CHECK(said[static_cast<std::size_t>(rank)].find("its forward was begun, but not finished") != std::string::npos);
  }
}

TEST_CASE("ranks that disagree about the hand-over are refused") {
  std::string said;
  orrery::threads::run(2, [&](auto& world) {
    try {
      orrery::attention<orrery::ring, kernel>{
          world, shape_with(world.rank() == 0 ? hand_over::together : hand_over::by_tensor)};
    } catch (const std::invalid_argument& e) {
      if (world.rank() == 0) said = e.what();
    }
  });
  CHECK(said ==
        "orrery: ranks disagree about hand_over: rank 0 has together; rank 1 has by_tensor; give all ranks the same");
}
