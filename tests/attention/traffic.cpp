// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The bytes and messages that an operator sends are those of its schedule, to the byte, and those that `traffic`
// predicts.
#include "orrery/predict/traffic.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include <doctest/doctest.h>

#include "orrery/attention/sizes.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/threads.hpp"

#include "support/any.hpp"
#include "support/conformance.hpp"
#include "support/topologies.hpp"

namespace {

struct sent {
  std::int64_t bytes = 0;
  std::int64_t messages = 0;
};

/// The bytes of a block, from its definition: how many tokens its shard has, which heads its slice has, which tensors
/// travel on its side in this pass, of which element type.
template <class Kernel, class Layout>
std::int64_t bytes_of(const orrery::schedule::block& b, orrery::schedule::payload c, orrery::pass p,
                      const orrery::attention_shape& s, int world, int slices) {
  const auto stored = static_cast<std::int64_t>(sizeof(typename Kernel::storage));
  const auto summed = static_cast<std::int64_t>(sizeof(typename Kernel::accumulator));
  const bool is_query = b.side == orrery::schedule::side::query;
  std::set<std::int64_t> heads;
  for (std::int64_t h = 0; h < s.query_heads; ++h) {
    if (h < b.slice * s.query_heads / slices || h >= (b.slice + 1) * s.query_heads / slices) continue;
    heads.insert(is_query ? h : h / (s.query_heads / *s.key_heads));
  }
  const std::int64_t tokens = Layout{}.shard(b.shard, world, is_query ? s.length : *s.key_length).tokens();
  const std::int64_t numbers = s.batch * tokens * static_cast<std::int64_t>(heads.size());
  if (c == orrery::schedule::payload::operand) {
    if (!is_query) return numbers * (s.head_dim + *s.value_dim) * stored;  // K, V
    if (p == orrery::pass::forward) return numbers * s.head_dim * stored;  // Q
    return numbers * ((s.head_dim + *s.value_dim) * stored + 2 * summed);  // Q, dO, lse, delta
  }
  if (!is_query) return numbers * (s.head_dim + *s.value_dim) * summed;                    // dK, dV
  return numbers * (p == orrery::pass::forward ? *s.value_dim + 1 : s.head_dim) * summed;  // O, lse; dQ
}

/// What a rank's program sends.
template <class Kernel, class Layout>
sent expected(const orrery::program& steps, const orrery::attention_shape& s) {
  sent sum;
  for (const orrery::schedule::exchange& x : steps.exchanges) {
    sum.messages += x.sent.count > 0 ? 1 : 0;
    for (int i = x.sent.first; i < x.sent.end(); ++i) {
      sum.bytes += bytes_of<Kernel, Layout>(steps.sent[i], x.payload, steps.pass, s, steps.world, steps.slices);
    }
  }
  return sum;
}

/// Runs an operator on every rank and calls `check(rank, pass, sent)` there for both passes, twice.
template <class Topology, class Kernel, class Layout, class Check>
void measure(int world, const orrery::attention_shape& shape, const Check& check) {
  const auto p = oracle::random_problem<typename Kernel::storage>(conformance::oracle_shape(shape), 1);
  CHECK_NOTHROW(orrery::threads::run(world, [&](auto& on) {
    orrery::counted counting{on};
    orrery::attention<Topology, Kernel> attend{counting, shape, orrery::full{}, Layout{}};
    conformance::rank_tensors<Kernel> mine{p, attend.query_positions(), attend.key_positions(), {}};
    const auto check_call = [&](orrery::pass pass) {
      check(on.rank(), pass, sent{counting.bytes_sent(), counting.messages_sent()});
      counting.reset();
    };
    for (int call = 0; call < 2; ++call) {
      mine.forward(attend);
      check_call(orrery::pass::forward);
      mine.backward(attend);
      check_call(shape.circulate);
    }
  }));
}

void require(const char* what, std::int64_t expected, std::int64_t got) {
  if (expected == got) return;
  throw std::logic_error{std::string{what} + ": expected " + std::to_string(expected) + ", sent " +
                         std::to_string(got)};
}

}  // namespace

TEST_CASE_TEMPLATE("uneven shapes: each block's own size, exactly", Topology, ORRERY_TEST_TOPOLOGIES) {
  using kernel = orrery::reference<float>;  // stores 4 bytes, sums 8
  for (const int world : {1, 3, 6, 8, 9}) {
    for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
      if (orrery::unsupported_reason(Topology{}, world, circulate) != nullptr) continue;
      const orrery::attention_shape shape{.batch = 2,
                                          .length = 29,
                                          .query_heads = 14,
                                          .key_heads = 7,
                                          .head_dim = 3,
                                          .value_dim = 5,
                                          .key_length = 19,
                                          .circulate = circulate};
      INFO(orrery::name_of(Topology{}), " over ", world, ", ", orrery::name_of(circulate));
      measure<Topology, kernel, orrery::zigzag>(world, shape, [&](int rank, orrery::pass p, const sent& got) {
        const orrery::program steps = orrery::program_of(Topology{}, rank, world, p);
        const sent should = expected<kernel, orrery::zigzag>(steps, shape);
        require("bytes", should.bytes, got.bytes);
        require("messages", should.messages, got.messages);
      });
    }
  }
}

namespace {

/// Runs an operator on every rank and compares what `counted` counts there with what the operator's `traffic` says;
/// returns that, of both passes.
template <class Kernel, class Mask = orrery::full>
std::array<orrery::byte_report, 2> check_operator(int world, const orrery::attention_shape& shape,
                                                  const orrery::any_topology& topology,
                                                  const conformance::any_layout& layout, const Mask& mask = {}) {
  const auto p = oracle::random_problem<typename Kernel::storage>(conformance::oracle_shape(shape), 1);
  std::array<orrery::byte_report, 2> reports;
  CHECK_NOTHROW(orrery::threads::run(world, [&](auto& on) {
    orrery::counted counting{on};
    orrery::attention<orrery::any_topology, Kernel> attend{counting, shape, mask, layout, topology};
    conformance::rank_tensors<Kernel> local{p, attend.query_positions(), attend.key_positions(), {}};
    for (const bool forward : {true, false}) {
      const orrery::byte_report report =
          forward ? std::as_const(attend).traffic() : std::as_const(attend).traffic(shape.circulate);
      counting.reset();
      forward ? local.forward(attend) : local.backward(attend);
      const auto& mine = report.ranks[on.rank()];
      require("bytes sent", mine.sent, counting.bytes_sent());
      require("bytes received", mine.received, counting.bytes_received());
      require("messages sent", mine.messages_sent, counting.messages_sent());
      require("messages received", mine.messages_received, counting.messages_received());
      if (on.rank() == 0) reports[forward ? 0 : 1] = report;
    }
  }));
  return reports;
}

void check_same_bytes(const orrery::byte_report& a, const orrery::byte_report& b) {
  CHECK((a.between == b.between));
  CHECK(a.total == b.total);
  CHECK(a.sent == b.sent);
  CHECK(a.received == b.received);
}

}  // namespace

TEST_CASE_TEMPLATE("an operator's traffic is what is counted, sent and received", Kernel, orrery::flash<float>,
                   orrery::flash<double>, orrery::flash<orrery::bfloat16>, orrery::flash<orrery::float16>,
                   orrery::reference<float>) {
  INFO(Kernel::name());
  for (const orrery::any_topology& topology : any::topologies()) {
    for (const int world : {1, 6, 8, 9}) {
      for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
        if (topology.unsupported_reason(world, circulate) != nullptr) continue;
        for (const auto messages : {orrery::operand_messages::per_block, orrery::operand_messages::per_tensor}) {
          // Uneven shards and slices, slices that share key heads, grouped queries, three lengths of vectors.
          const orrery::attention_shape shape{.batch = 2,
                                              .length = 29,
                                              .query_heads = 14,
                                              .key_heads = 7,
                                              .head_dim = 3,
                                              .value_dim = 5,
                                              .key_length = 19,
                                              .circulate = circulate,
                                              .operand_messages = messages};
          INFO(topology.name(), " over ", world, ", ", orrery::name_of(circulate), ", ", orrery::name_of(messages));
          const auto reports = check_operator<Kernel>(world, shape, topology, orrery::zigzag{});
          // The same, without an operator.
          const auto bytes = orrery::attention_sizes::of<Kernel>(shape, orrery::pass::forward, world, orrery::zigzag{},
                                                                 topology.slices(world));
          for (const bool forward : {true, false}) {
            const orrery::pass p = forward ? orrery::pass::forward : circulate;
            check_same_bytes(reports[forward ? 0 : 1],
                             orrery::traffic(orrery::programs_of(topology, world, p), bytes.in_pass(p)));
          }
        }
      }
    }
  }
}

TEST_CASE("an operator's traffic is what is counted where its mask needs less than all pairs") {
  const orrery::attention_shape shape{.batch = 2,
                                      .length = 29,
                                      .query_heads = 16,
                                      .key_heads = 8,
                                      .head_dim = 3,
                                      .value_dim = 5,
                                      .operand_messages = orrery::operand_messages::per_tensor};
  using kernel = orrery::flash<orrery::bfloat16>;
  for (const orrery::any_topology& topology : any::topologies()) {
    for (const int world : {4, 8, 9}) {
      if (topology.unsupported_reason(world, orrery::pass::circulate_keys) != nullptr) continue;
      INFO(topology.name(), " over ", world);
      const auto all = check_operator<kernel>(world, shape, topology, orrery::contiguous{});
      const auto causal = check_operator<kernel>(world, shape, topology, orrery::contiguous{}, orrery::causal{});
      const auto shifted = check_operator<kernel>(world, shape, topology, orrery::zigzag{}, orrery::causal{-9});
      for (const std::size_t p : {0U, 1U}) {
        CHECK(causal[p].total <= all[p].total);
        CHECK(shifted[p].total <= all[p].total);
      }
    }
  }
  // Half of a ring's: with 8 ranks 28 of 56 blocks of keys, of 2 heads, 2 tokens, 2 · 8 numbers of 2 bytes.
  const auto half = check_operator<kernel>(8, {.length = 16, .query_heads = 4, .key_heads = 2, .head_dim = 8},
                                           orrery::ring{}, orrery::contiguous{}, orrery::causal{});
  CHECK(half[0].total == 28 * 2 * 2 * 2 * 8 * 2);
}

TEST_CASE("an operator's traffic: the bytes of 16-bit storage whose sums are float") {
  // Shards of 2 tokens, 4 query heads of 8 and 2 key heads.
  const orrery::attention_shape shape{.length = 32, .query_heads = 4, .key_heads = 2, .head_dim = 8};
  const std::int64_t rows = 2 * 4;
  const std::int64_t unit = rows * 8 * 2;  // Q of a shard
  const auto reports =
      check_operator<orrery::flash<orrery::bfloat16>>(16, shape, orrery::concentric<4>{}, orrery::contiguous{});
  // Rows gather Q and reduce O (twice as wide) and lse; columns circulate K and V of half as many heads.
  const std::int64_t forward = 3 * unit + 3 * (2 * unit + rows * 4) + 3 * unit;
  CHECK(reports[0].sent == forward);
  CHECK(reports[0].received == forward);
  CHECK(reports[0].total == 16 * forward);
  CHECK(reports[0].node_egress(4) == 4 * 3 * unit);
  CHECK(reports[0].node_ingress(4) == 4 * 3 * unit);
  // Q, dO, lse and delta; dQ; K, V, dK and dV.
  CHECK(reports[1].sent == 3 * (2 * unit + 2 * rows * 4) + 3 * 2 * unit + 3 * unit + 3 * 2 * unit);
  CHECK(reports[1].node_egress(4) == 4 * 3 * 3 * unit);
  // In units, without lse and delta.
  CHECK(orrery::traffic(orrery::concentric<4>{}, 16, orrery::pass::forward, 2, 2).sent == 3 + 3 * 2 + 3);
  CHECK(orrery::traffic(orrery::concentric<4>{}, 16, orrery::pass::circulate_keys, 2, 2).sent == 6 + 6 + 3 + 6);
}

TEST_CASE("an operator tells the traffic of the passes that it has") {
  orrery::threads::run(2, [](auto& on) {
    const orrery::attention_shape shape{.length = 8, .head_dim = 4};
    using ring_attention = orrery::attention<orrery::ring, orrery::flash<float>>;
    ring_attention attend{on, shape};
    CHECK_THROWS_WITH_AS(
        static_cast<void>(attend.traffic(orrery::pass::circulate_queries)),
        "orrery: attention::traffic: pass is circulate_queries, but this operator's backward is circulate_keys; ask "
        "for pass::circulate_keys, or construct it with .circulate = pass::circulate_queries in its shape",
        std::invalid_argument);
    const ring_attention moved = std::move(attend);
    CHECK(moved.traffic().sent == 4 * 2 * 4 * 4);  // K and V of 4 tokens
    CHECK(moved.traffic(orrery::pass::circulate_keys).sent == 2 * moved.traffic().sent);
    CHECK_THROWS_AS(static_cast<void>(attend.traffic()), std::logic_error);  // NOLINT(bugprone-use-after-move)
    orrery::attention_shape of_forward = shape;
    of_forward.forward_only = true;
    const ring_attention inference{on, of_forward};
    CHECK(inference.traffic().sent == moved.traffic().sent);
    CHECK_THROWS_WITH_AS(static_cast<void>(inference.traffic(orrery::pass::circulate_keys)),
                         "orrery: attention::traffic: pass is circulate_keys, but this operator is forward_only; ask "
                         "for pass::forward, or construct it without forward_only in its shape",
                         std::invalid_argument);
  });
}

TEST_CASE_TEMPLATE("even shapes: traffic's units", Topology, ORRERY_TEST_TOPOLOGIES) {
  using kernel = orrery::reference<double>;
  for (const int world : {1, 4, 8, 9}) {
    for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
      if (orrery::unsupported_reason(Topology{}, world, circulate) != nullptr) continue;
      // As many tokens and heads as each of these worlds divides; three query heads to a key head, so that each slice
      // has whole groups.
      const std::int64_t shard = 2;
      const std::int64_t key_heads = world;
      const std::int64_t group = 3;
      const orrery::attention_shape shape{.length = shard * world,
                                          .query_heads = group * key_heads,
                                          .key_heads = key_heads,
                                          .head_dim = 4,
                                          .value_dim = 4,
                                          .key_length = shard * world,
                                          .circulate = circulate};
      INFO(orrery::name_of(Topology{}), " over ", world, ", ", orrery::name_of(circulate));
      measure<Topology, kernel, orrery::contiguous>(world, shape, [&](int rank, orrery::pass p, const sent& got) {
        const auto report = orrery::traffic(Topology{}, world, p, static_cast<double>(group));
        const orrery::rank_traffic& mine = report.ranks[rank];
        // One number for each query and head: a partial's lse forward, an operand's lse and delta backward.
        const std::int64_t rows = shard * shape.query_heads;
        const std::int64_t small = p == orrery::pass::forward ? mine.blocks_sent[1] : 2 * mine.blocks_sent[0];
        const double unit = static_cast<double>(rows * shape.head_dim * 8);
        const double bytes = mine.sent * unit + static_cast<double>(small * rows * 8) / report.slices;
        require("bytes", std::llround(bytes), got.bytes);
        require("messages", mine.messages_sent, got.messages);
        if (mine.sent > report.sent) throw std::logic_error{"not the busiest"};
      });
    }
  }
}

TEST_CASE_TEMPLATE("memory: traffic's slots times a block, and own operands that are sent, and delta", Topology,
                   ORRERY_TEST_TOPOLOGIES) {
  using kernel = orrery::reference<double>;
  for (const int world : {1, 4, 8, 9}) {
    for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
      if (orrery::unsupported_reason(Topology{}, world, circulate) != nullptr) continue;
      const orrery::attention_shape shape{.length = 2 * world,
                                          .query_heads = 3 * world,
                                          .key_heads = world,
                                          .head_dim = 4,
                                          .value_dim = 4,
                                          .key_length = 2 * world,
                                          .circulate = circulate};
      INFO(orrery::name_of(Topology{}), " over ", world, ", ", orrery::name_of(circulate));
      CHECK_NOTHROW(orrery::threads::run(world, [&](auto& on) {
        orrery::counted counting{on};
        const orrery::attention<Topology, kernel> attend{counting, shape, orrery::full{}};
        orrery::attention_shape of_forward = shape;
        of_forward.forward_only = true;
        const orrery::attention<Topology, kernel> forward_only{counting, of_forward, orrery::full{}};
        std::int64_t expected_of_forward = 0;
        std::int64_t expected = 2 * shape.query_heads * 8;  // delta
        for (const orrery::pass p : {orrery::pass::forward, circulate}) {
          const std::int64_t before = expected;
          const orrery::program steps = orrery::program_of(Topology{}, on.rank(), world, p);
          const orrery::rank_traffic mine = orrery::traffic(Topology{}, world, p, 3).ranks[on.rank()];
          const auto block = [&](orrery::schedule::side s, orrery::schedule::payload c) {
            const orrery::schedule::block one{s, 0, on.rank(), 0};
            const std::int64_t bytes = bytes_of<kernel, orrery::contiguous>(one, c, p, shape, world, steps.slices);
            return (bytes + 63) / 64 * 64;
          };
          std::set<std::pair<orrery::schedule::side, int>> own;
          for (const orrery::schedule::exchange& x : steps.exchanges) {
            for (int i = x.sent.first; i < x.sent.end(); ++i) {
              const orrery::schedule::block& b = steps.sent[i];
              if (x.payload == orrery::schedule::payload::operand && b.shard == on.rank()) own.emplace(b.side, b.slice);
            }
          }
          for (const auto& [s, slice] : own) expected += block(s, orrery::schedule::payload::operand);
          for (const orrery::schedule::side s : {orrery::schedule::side::query, orrery::schedule::side::key}) {
            for (const orrery::schedule::payload c :
                 {orrery::schedule::payload::operand, orrery::schedule::payload::partial}) {
              const std::size_t kind = 2 * static_cast<std::size_t>(s) + static_cast<std::size_t>(c);
              if (mine.slots[kind] > 0) expected += mine.slots[kind] * block(s, c);
            }
          }
          if (p == orrery::pass::forward) expected_of_forward = expected - before;
        }
        require("bytes of the workspace", expected, attend.workspace_bytes());
        require("bytes of the workspace without a backward", expected_of_forward, forward_only.workspace_bytes());
      }));
    }
  }
}

TEST_CASE("a ring keeps two key shards forward, never one for each rank") {
  for (int world = 3; world <= 17; ++world) {
    for (const orrery::rank_traffic& mine : orrery::traffic(orrery::ring{}, world).ranks) {
      CHECK(mine.slots == std::array<int, 4>{0, 0, 2, 0});
    }
  }
}

TEST_CASE("the formulas, in bytes: ring sends 2(P-1), 4(P-1) or 3(P-1) shards") {
  const int world = 5;
  for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
    const orrery::attention_shape shape{.length = 20,
                                        .query_heads = 2,
                                        .key_heads = 2,
                                        .head_dim = 8,
                                        .value_dim = 8,
                                        .key_length = 20,
                                        .circulate = circulate};
    measure<orrery::ring, orrery::reference<double>, orrery::contiguous>(
        world, shape, [&](int, orrery::pass p, const sent& got) {
          const std::int64_t unit = 4 * 2 * 8 * 8;
          const std::int64_t rows = 4 * 2 * 8;
          switch (p) {
            case orrery::pass::forward:
              return require("forward", 2 * (world - 1) * unit, got.bytes);
            case orrery::pass::circulate_keys:
              return require("circulate_keys", 4 * (world - 1) * unit, got.bytes);
            case orrery::pass::circulate_queries:
              return require("circulate_queries", (world - 1) * (3 * unit + 2 * rows), got.bytes);
          }
        });
  }
}
