// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Operands that are handed over one after the other leave one after the other, and results are told of when they are
// final. That they are right is part of the conformance suite, whose every second call is made so.
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention/started_forward.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/threads.hpp"

#include "support/any.hpp"
#include "support/conformance.hpp"

namespace hand_over_test {

namespace {

using kernel = orrery::flash<float>;
using orrery::operand_messages;
using orrery::output_part;
using tensors = conformance::rank_tensors<kernel>;

constexpr int world_size = 4;

orrery::attention_shape shape_with(operand_messages how) {
  return {.length = 20, .query_heads = 8, .key_heads = 4, .head_dim = 6, .value_dim = 3, .operand_messages = how};
}

template <class Attention>
tensors problem_for(const Attention& attend) {
  const auto p = oracle::random_problem<float>(conformance::oracle_shape(attend.shape()), 1);
  return tensors{p, attend.query_positions(), attend.key_positions(), {}};
}

/// Bytes that rank 0 has sent after each of queries, keys, values and finish.
template <class Topology>
std::vector<std::int64_t> bytes_sent_after_each_call(operand_messages how) {
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
  CHECK(bytes_sent_after_each_call<orrery::ulysses>(operand_messages::per_tensor) ==
        bytes{q / 4 * 3, (q + k) / 4 * 3, (q + k + v) / 4 * 3, (q + k + v + o) / 4 * 3});
  CHECK(bytes_sent_after_each_call<orrery::ulysses>(operand_messages::per_block) ==
        bytes{0, 0, (q + k + v) / 4 * 3, (q + k + v + o) / 4 * 3});
  CHECK(bytes_sent_after_each_call<orrery::ring>(operand_messages::per_tensor) == bytes{0, k, k + v, 3 * (k + v)});
  CHECK(bytes_sent_after_each_call<orrery::ring>(operand_messages::per_block) == bytes{0, 0, k + v, 3 * (k + v)});
  // The row gathers queries, the column keys. Queries that travel alone need no splitting.
  CHECK(bytes_sent_after_each_call<orrery::concentric<2, 2>>(operand_messages::per_tensor) ==
        bytes{q, q + k, q + k + v, q + k + v + o});
  CHECK(bytes_sent_after_each_call<orrery::concentric<2, 2>>(operand_messages::per_block) ==
        bytes{q, q, q + k + v, q + k + v + o});
}

TEST_CASE("every head of every result is said to be final, once") {
  using kernel_of_sums = orrery::flash<orrery::bfloat16>;
  for (const orrery::any_topology& topology : any::topologies()) {
    const int world = topology.unsupported_reason(8) == nullptr ? 8 : 9;
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
          auto& final = part.side == orrery::schedule::side::query ? final_queries : final_keys;
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
    orrery::attention<orrery::ring, kernel> attend{world, shape_with(operand_messages::per_tensor)};
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
    orrery::attention<orrery::ulysses, kernel> attend{world, shape_with(operand_messages::per_tensor)};
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
  const auto backward = [](auto& attend, auto&, auto& mine) { mine.backward(attend); };
  CHECK(refusal(backward) ==
        "orrery: attention::backward: a forward was begun on this operator and is not finished; finish it first, or "
        "use another operator");
}

namespace {

/// What `call` throws, or "nothing".
template <class Call>
std::string what(const Call& call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "nothing";
}

void expect(const std::string& said, const std::string& expected) {
  if (said != expected) throw std::logic_error{"said: " + said + "; expected: " + expected};
}

template <class Call>
void give_all(Call& call, tensors& mine) {
  call.queries(mine.q.view());
  call.keys(mine.k.view());
  call.values(mine.v.view());
}

}  // namespace

TEST_CASE("a forward is over when finish returns: the operator works on beside its handle") {
  using kernel_of_sums = orrery::flash<orrery::bfloat16>;
  for (const orrery::any_topology& topology : any::topologies()) {
    const int world = topology.unsupported_reason(8) == nullptr ? 8 : 9;
    const orrery::attention_shape shape{.length = 20, .query_heads = 9, .key_heads = 3, .head_dim = 4};
    const auto p = oracle::random_problem<orrery::bfloat16>(conformance::oracle_shape(shape), 1);
    INFO(topology.name());
    CHECK_NOTHROW(orrery::threads::run(world, [&](auto& on) {
      orrery::attention<orrery::any_topology, kernel_of_sums> attend{on, shape, orrery::full{}, orrery::contiguous{},
                                                                     topology};
      conformance::rank_tensors<kernel_of_sums> mine{p, attend.query_positions(), attend.key_positions(), {}};
      mine.forward(attend);
      mine.backward(attend);
      const std::string bits = mine.bits();
      mine.poison();
      auto first = attend.begin_forward(mine.out.view(), mine.lse.view());
      first.queries(mine.q.view()), first.keys(mine.k.view()), first.values(mine.v.view());
      first.finish();
      mine.backward(attend);
      expect(mine.bits() == bits ? "the same bits" : "others", "the same bits");
      mine.forward(attend);
      mine.poison();
      {
        auto second = attend.begin_forward(mine.out.view(), mine.lse.view());
        first.progress();
        second.queries(mine.q.view()), second.keys(mine.k.view()), second.values(mine.v.view());
        expect(what([&] { first.finish(); }),
               "orrery: attention::begin_forward: finish was called, expected no more, since this forward is over; "
               "call queries, keys, values and finish, in this order");
        second.finish();
      }
      mine.backward(attend);
      expect(mine.bits() == bits ? "the same bits" : "others", "the same bits");
    }));
  }
}

TEST_CASE("a handle that is done leaves the next forward alone") {
  orrery::threads::run(1, [&](auto& world) {
    orrery::attention<orrery::ring, kernel> attend{world, shape_with(operand_messages::per_tensor)};
    tensors mine = problem_for(attend);
    const auto begin = [&] {
      return std::unique_ptr<orrery::started_forward<kernel>>{
          new orrery::started_forward<kernel>(attend.begin_forward(mine.out.view(), mine.lse.view()))};
    };
    auto first = begin();
    give_all(*first, mine);
    first->finish();
    const auto second = begin();
    first.reset();
    give_all(*second, mine);
    expect(what([&] { mine.forward(attend); }),
           "orrery: attention::forward: a forward was begun on this operator and is not finished; finish it first, or "
           "use another operator");
    second->finish();
    mine.forward(attend);
  });
}

TEST_CASE("finish ends a forward that fails, too") {
  std::string again, next;
  CHECK_THROWS_AS(
      orrery::threads::run(
          1,
          [&](auto& world) {
            orrery::attention<orrery::ring, kernel> attend{world, shape_with(operand_messages::per_tensor)};
            tensors mine = problem_for(attend);
            auto call = attend.begin_forward(mine.out.view(), mine.lse.view());
            give_all(call, mine);
            expect(what([&] { call.finish([](const output_part&) { throw std::runtime_error{"listener"}; }); }),
                   "listener");
            again = what([&] { call.finish(); });
            next = what([&] { mine.forward(attend); });
            mine.forward(attend);
          }),
      orrery::transport_error);
  CHECK(again ==
        "orrery: attention::begin_forward: finish was called, expected no more, since this forward is over; call "
        "queries, keys, values and finish, in this order");
  CHECK(next.find("rank 0 failed in step 0: listener") != std::string::npos);
}

// A handle stays where it was made: it cannot be moved from.
static_assert(!std::is_move_constructible_v<orrery::started_forward<kernel>>);
static_assert(!std::is_move_assignable_v<orrery::started_forward<kernel>>);

namespace {

using operator_type = orrery::attention<orrery::ring, kernel>;

/// Begins a forward, gives it its first `given` tensors, lets `end_operator` end the operator, and calls all that the
/// handle has. What each call says, on a single rank.
template <class End>
std::vector<std::string> said_by_handle_without_operator(int given, const End& end_operator) {
  std::vector<std::string> said;
  orrery::threads::run(1, [&](auto& world) {
    std::optional<operator_type> attend{std::in_place, world, shape_with(operand_messages::per_tensor)};
    tensors mine = problem_for(*attend);
    auto call = attend->begin_forward(mine.out.view(), mine.lse.view());
    if (given > 0) call.queries(mine.q.view());
    if (given > 1) call.keys(mine.k.view());
    if (given > 2) call.values(mine.v.view());
    end_operator(attend, world);
    said = {what([&] { call.progress(); }), what([&] {
              if (given == 0) call.queries(mine.q.view());
              if (given == 1) call.keys(mine.k.view());
              if (given == 2) call.values(mine.v.view());
              if (given == 3) call.finish();
            })};
  });
  return said;
}

}  // namespace

TEST_CASE("a handle without its operator says so") {
  const std::string names[] = {"queries", "keys", "values", "finish"};
  const auto destroy = [](auto& attend, auto&) { attend.reset(); };
  const auto assign = [](auto& attend, auto& world) {
    *attend = operator_type{world, shape_with(operand_messages::per_tensor)};
  };
  const auto check = [&](int given, const std::vector<std::string>& said) {
    for (const std::string& call : {std::string{"progress"}, names[given]}) {
      CHECK(said[call == "progress" ? 0 : 1] ==
            "orrery: attention::begin_forward: " + call +
                " was called, but the operator that began this forward was destroyed or assigned to; keep the operator "
                "until finish has returned");
    }
  };
  for (int given = 0; given < 4; ++given) {
    check(given, said_by_handle_without_operator(given, destroy));
    check(given, said_by_handle_without_operator(given, assign));
  }
}

TEST_CASE("an operator that goes in the middle of a forward is named on all ranks") {
  for (const bool assigned : {false, true}) {
    std::vector<std::string> said(world_size);
    orrery::threads::run(world_size, [&](auto& world) {
      std::optional<operator_type> attend{std::in_place, world, shape_with(operand_messages::per_tensor)};
      operator_type other{world, shape_with(operand_messages::per_tensor)};
      tensors mine = problem_for(*attend);
      said[static_cast<std::size_t>(world.rank())] = what([&] {
        auto call = attend->begin_forward(mine.out.view(), mine.lse.view());
        give_all(call, mine);
        if (world.rank() != 2) return call.finish();
        if (assigned) {
          *attend = std::move(other);
        } else {
          attend.reset();
        }
      });
    });
    CHECK(said[2] == "nothing");
    for (const int rank : {0, 1, 3}) {
      CHECK(said[static_cast<std::size_t>(rank)].find("rank 2 failed in step 0: its forward was begun, but not "
                                                      "finished") != std::string::npos);
    }
  }
}

TEST_CASE("a started forward moves with its operator") {
  orrery::threads::run(world_size, [&](auto& world) {
    operator_type first{world, shape_with(operand_messages::per_tensor)};
    tensors mine = problem_for(first);
    mine.forward(first);
    const std::string bits = mine.bits();
    mine.poison();
    auto call = first.begin_forward(mine.out.view(), mine.lse.view());
    call.queries(mine.q.view());
    operator_type second{std::move(first)};
    call.keys(mine.k.view());
    expect(what([&] { mine.forward(second); }),
           "orrery: attention::forward: a forward was begun on this operator and is not finished; finish it first, or "
           "use another operator");
    operator_type third{world, shape_with(operand_messages::per_tensor)};
    third = std::move(second);
    call.values(mine.v.view());
    call.finish();
    expect(mine.bits() == bits ? "the same bits" : "others", "the same bits");
    mine.backward(third);
  });
}

TEST_CASE("an operator that was moved from says so in every call, and may be destroyed or assigned to") {
  static_assert(std::is_nothrow_move_constructible_v<operator_type> &&
                std::is_nothrow_move_assignable_v<operator_type> && !std::is_copy_constructible_v<operator_type>);
  orrery::threads::run(2, [&](auto& world) {
    operator_type attend{world, shape_with(operand_messages::per_tensor)};
    tensors mine = problem_for(attend);
    operator_type other{std::move(attend)};
    const auto expect_refused = [&](const std::string& call, const std::string& said) {
      expect(said,
             "orrery: attention::" + call +
                 ": this operator was moved from, and has nothing left to call; use the one that it was moved to");
    };
    expect_refused("forward", what([&] { mine.forward(attend); }));
    expect_refused("backward", what([&] { mine.backward(attend); }));
    expect_refused("begin_forward",
                   what([&] { static_cast<void>(attend.begin_forward(mine.out.view(), mine.lse.view())); }));
    expect_refused("query_positions", what([&] { static_cast<void>(attend.query_positions()); }));
    expect_refused("key_positions", what([&] { static_cast<void>(attend.key_positions()); }));
    expect_refused("shape", what([&] { static_cast<void>(attend.shape()); }));
    expect_refused("workspace_bytes", what([&] { static_cast<void>(attend.workspace_bytes()); }));
    operator_type none{std::move(attend)};
    expect_refused("shape", what([&] { static_cast<void>(none.shape()); }));
    attend = std::move(other);
    mine.forward(attend);
    mine.backward(attend);
    operator_type& self = attend;
    attend = std::move(self);
    mine.forward(attend);
  });
}

TEST_CASE("whoever leaves a forward that it has begun is named on all ranks") {
  std::vector<std::string> said(world_size);
  orrery::threads::run(world_size, [&](auto& world) {
    orrery::attention<orrery::ring, kernel> attend{world, shape_with(operand_messages::per_tensor)};
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
          world, shape_with(world.rank() == 0 ? operand_messages::per_block : operand_messages::per_tensor)};
    } catch (const std::invalid_argument& e) {
      if (world.rank() == 0) said = e.what();
    }
  });
  CHECK(said ==
        "orrery: ranks disagree about operand_messages: rank 0 has together; rank 1 has by_tensor; give all ranks the "
        "same");
}

}  // namespace hand_over_test
