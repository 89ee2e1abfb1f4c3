// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Shards in chunks against the oracle: every mask, layout and shape, with the programs of several topologies refined.
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/kernel/reference.hpp"
#include "orrery/layout/dispatched.hpp"
#include "orrery/layout/per_document.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/topology/detail/refined.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/tune/balanced.hpp"

#include "attention/matrix.hpp"

namespace conformance_chunks_test {

using attention_test::check_policies;
using orrery::any_topology;
using orrery::detail::refined;

namespace {

template <class Topology>
any_topology in_chunks(int chunks) {
  return refined<Topology>{{}, chunks};
}

/// Chunks of very different sizes: 3 of them, of which the last rank has an empty one first, others one of a token.
struct uneven {
  [[nodiscard]] static int chunks(int, std::int64_t) { return 3; }
  [[nodiscard]] static orrery::segments chunk(int rank, int chunk, int world, std::int64_t length) {
    const orrery::segment all = orrery::contiguous::piece(rank, world, length);
    const std::int64_t one = rank + 1 < world && all.count > 0 ? 1 : 0;
    const std::int64_t rest = (all.count - one) / 4;
    const std::int64_t first = chunk == 0 ? 0 : chunk == 1 ? one : one + rest;
    const std::int64_t count = chunk == 0 ? one : chunk == 1 ? rest : all.count - one - rest;
    orrery::segments some;
    some.add({all.begin + first, count, count, count});
    return some;
  }
  [[nodiscard]] static std::string name() { return "uneven"; }
};

constexpr orrery::attention_shape grouped{
    .batch = 2, .length = 67, .query_heads = 6, .key_heads = 2, .head_dim = 3, .value_dim = 5};

const orrery::any_layout layouts[] = {orrery::contiguous{}, orrery::zigzag{}, orrery::striped<1>{},
                                      orrery::striped<3>{}, uneven{}};

template <class Topology>
void check_all(int world, int chunks, std::uint64_t seed) {
  const any_topology topology = in_chunks<Topology>(chunks);
  for (const orrery::any_layout& layout : layouts) {
    if (layout.chunks(world, 1) > chunks && !layout.has_whole_shards()) continue;
    check_policies<orrery::flash<double>>(topology, world, grouped, orrery::causal{}, layout, seed);
  }
}

}  // namespace

TEST_CASE("worlds: contiguous in 1 to 4 chunks, zigzag in 2 and 4") {
  std::uint64_t seed = 100;
  for (const int world : {1, 2, 3, 4, 5, 8}) {
    for (const int chunks : {1, 2, 3, 4}) {
      check_policies<orrery::flash<double>>(in_chunks<orrery::ring>(chunks), world, grouped, orrery::causal{},
                                            orrery::contiguous{}, seed);
      if (chunks % 2 != 0) continue;
      check_policies<orrery::flash<double>>(in_chunks<orrery::ring>(chunks), world, grouped, orrery::causal{},
                                            orrery::zigzag{}, seed);
      check_policies<orrery::flash<double>>(in_chunks<my_ring>(chunks), world, grouped, orrery::full{},
                                            orrery::zigzag{}, seed);
    }
    check_policies<orrery::flash<double>>(in_chunks<orrery::ulysses>(2), world > 6 ? 6 : world, grouped,
                                          orrery::causal{}, orrery::zigzag{}, seed);
  }
}

TEST_CASE("topologies and layouts") {
  check_all<orrery::ring>(4, 3, 1);
  check_all<orrery::ring>(3, 6, 2);
  check_all<orrery::all_gather>(5, 3, 3);
  check_all<orrery::concentric<2, 2>>(4, 3, 4);
  check_all<orrery::concentric<2>>(8, 3, 5);
  check_all<orrery::double_ring<2>>(4, 3, 6);
  check_all<orrery::wallfacer<2>>(4, 3, 7);
  check_all<orrery::usp<2>>(4, 3, 8);
  check_all<orrery::ulysses>(3, 3, 9);
  check_all<orrery::all_to_all<2, orrery::wallfacer<2>>>(8, 3, 10);
}

TEST_CASE("masks: full, causal with an offset, a user's own") {
  std::uint64_t seed = 300;
  for (const orrery::any_layout& layout : layouts) {
    check_policies<orrery::flash<double>>(in_chunks<orrery::ring>(3), 4, grouped, orrery::full{}, layout, seed);
    check_policies<orrery::flash<double>>(in_chunks<orrery::concentric<2>>(3), 4, grouped, orrery::causal{-30}, layout,
                                          seed);
    check_policies<orrery::flash<double>>(in_chunks<orrery::usp<2>>(3), 4, grouped, attention_test::band{}, layout,
                                          seed);
  }
}

TEST_CASE("a layout that gives no whole shards is run in its chunks, with any topology") {
  std::uint64_t seed = 350;
  for (const int world : {1, 2, 3, 4, 8}) {
    check_policies<orrery::flash<double>>(orrery::ring{}, world, grouped, orrery::causal{}, uneven{}, seed);
    check_policies<orrery::flash<double>>(my_ring{}, world, grouped, orrery::full{}, uneven{}, seed);
    if (world % 2 == 0)
      check_policies<orrery::flash<double>>(orrery::usp<2>{}, world, grouped, orrery::causal{}, uneven{}, seed);
  }
}

TEST_CASE("pieces that are dealt out for a mask") {
  std::uint64_t seed = 360;
  for (const int world : {1, 2, 3, 5, 8}) {
    for (const orrery::dispatched& layout :
         {orrery::balanced(orrery::causal{}, world, {.length = grouped.length, .chunks = 3}),
          orrery::balanced(orrery::causal{} & orrery::window{.left = 9}, world,
                           {.length = grouped.length, .chunks = 4})}) {
      check_policies<orrery::flash<double>>(orrery::ring{}, world, grouped, orrery::causal{}, layout, seed);
      check_policies<orrery::flash<double>>(my_ring{}, world, grouped, orrery::full{}, layout, seed);
      if (world % 2 == 0)
        check_policies<orrery::flash<double>>(orrery::usp<2>{}, world, grouped, orrery::causal{}, layout, seed);
    }
  }
}

TEST_CASE("packed documents, each dealt to all ranks") {
  std::uint64_t seed = 370;
  const std::int64_t lengths[] = {20, 1, 31, 9};  // and 6 tokens of padding
  for (const int world : {1, 2, 3, 4, 8}) {
    for (const orrery::any_layout& layout : {orrery::any_layout{orrery::per_document<orrery::zigzag>{lengths}},
                                             orrery::layout_named("per_document<striped<2>>", lengths),
                                             orrery::layout_named("per_document<contiguous>", lengths)}) {
      check_policies<orrery::flash<double>>(orrery::ring{}, world, grouped, orrery::causal{}, layout, seed);
      check_policies<orrery::flash<double>>(orrery::all_gather{}, world, grouped, orrery::full{}, layout, seed);
      if (world % 4 == 0)
        check_policies<orrery::flash<double>>(orrery::concentric<2, 2>{}, world, grouped, orrery::causal{}, layout,
                                              seed);
    }
  }
}

TEST_CASE("packed documents under their mask") {
  std::uint64_t seed = 380;
  const std::int64_t lengths[] = {20, 1, 31, 9};  // and 6 tokens of padding
  const orrery::documents batch{lengths};
  for (const int world : {1, 2, 3, 4, 8}) {
    for (const orrery::any_layout& layout : {orrery::layout_named("per_document<zigzag>", lengths),
                                             orrery::layout_named("contiguous"), orrery::layout_named("zigzag")}) {
      check_policies<orrery::flash<double>>(orrery::ring{}, world, grouped, batch, layout, seed);
      check_policies<orrery::flash<double>>(orrery::usp<2>{}, 2 * world, grouped, batch & orrery::causal{}, layout,
                                            seed);
      check_policies<orrery::flash<double>>(my_ring{}, world, grouped, batch & orrery::window{.left = 4}, layout, seed);
    }
  }
}

TEST_CASE("tiny lengths, other lengths of keys, empty chunks") {
  std::uint64_t seed = 400;
  for (const std::int64_t length : {1, 2, 3, 5, 11}) {
    for (const std::int64_t key_length : {std::int64_t{1}, length, std::int64_t{13}}) {
      orrery::attention_shape shape = grouped;
      shape.length = length;
      shape.key_length = key_length;
      for (const int world : {1, 2, 3, 4}) {
        check_policies<orrery::flash<double>>(in_chunks<orrery::ring>(4), world, shape, orrery::causal{},
                                              orrery::zigzag{}, seed);
        check_policies<orrery::flash<double>>(in_chunks<orrery::usp<2>>(3), 2 * world, shape, orrery::causal{},
                                              orrery::contiguous{}, seed);
      }
    }
  }
}

TEST_CASE("key heads that slices share, in chunks") {
  std::uint64_t seed = 500;
  for (const auto& [query_heads, key_heads] : {std::pair{5, 1}, {6, 2}, {8, 8}, {12, 4}}) {
    orrery::attention_shape shape = grouped;
    shape.query_heads = query_heads;
    shape.key_heads = key_heads;
    for (const orrery::any_layout& layout : layouts) {
      check_policies<orrery::flash<double>>(in_chunks<orrery::ulysses>(3), 4, shape, orrery::causal{}, layout, seed);
      check_policies<orrery::flash<double>>(in_chunks<orrery::usp<4>>(6), 4, shape, orrery::causal{}, layout, seed);
    }
  }
}

TEST_CASE("kernels whose sums are of another type than what they store") {
  std::uint64_t seed = 600;
  for (const int world : {1, 3, 4}) {
    check_policies<orrery::reference<float>>(in_chunks<orrery::ring>(2), world, grouped, orrery::causal{},
                                             orrery::zigzag{}, seed);
    check_policies<orrery::reference<float>>(in_chunks<orrery::ulysses>(3), world, grouped, orrery::causal{},
                                             orrery::contiguous{}, seed);
    check_policies<orrery::flash<float>>(in_chunks<orrery::concentric<1>>(2), world, grouped, orrery::causal{},
                                         orrery::zigzag{}, seed);
  }
}

TEST_CASE("on_final tells each head once, when all its chunks are final") {
  for (const bool shared : {false, true}) {
    CAPTURE(shared);
    orrery::attention_shape shape = grouped;
    shape.key_heads = shared ? 1 : 6;
    const auto p = oracle::random_problem<double>(conformance::oracle_shape(shape), 7);
    CHECK_NOTHROW(orrery::threads::run(3, [&](auto& on) {
      orrery::attention<refined<orrery::ulysses>, orrery::flash<double>> attend{
          on, shape, orrery::causal{}, orrery::zigzag{}, {{}, 2}};
      conformance::rank_tensors<orrery::flash<double>> mine{p, attend.query_positions(), attend.key_positions(), {}};
      for (int call = 0; call < 2; ++call) {
        std::vector<int> times(6 + 6 + 6);
        const auto tell = [&](const orrery::output_part& heads, bool forward) {
          const bool keys = heads.side == orrery::schedule::side::key;
          const auto& tensor = forward ? mine.out : keys ? mine.grad_k : mine.grad_q;
          const std::int64_t first = forward ? 0 : keys ? 12 : 6;
          for (std::int64_t h = heads.first_head; h < heads.first_head + heads.heads; ++h) {
            ++times[static_cast<std::size_t>(first + h)];
            std::vector<double> now;
            tensor.each([&](std::int64_t b, std::int64_t t, std::int64_t head, std::int64_t c) {
              if (head == h) now.push_back(tensor.view().at(b, t, head)[c]);
            });
            for (const double value : now)
              if (std::isnan(value)) throw std::logic_error{"a result was told before it was written"};
          }
        };
        mine.poison();
        mine.forward(attend, [&](const orrery::output_part& heads) { tell(heads, true); });
        mine.backward(attend, [&](const orrery::output_part& heads) { tell(heads, false); });
        for (std::size_t i = 0; i < times.size(); ++i) {
          if (times[i] != (i >= 13 && shared ? 0 : 1)) throw std::logic_error{"a head is not told once"};
        }
      }
    }));
  }
}

TEST_CASE("bytes do not depend on chunks, nor does memory but for its alignment") {
  for (const int chunks : {1, 2, 4}) {
    std::int64_t bytes[2] = {0, 0};
    std::int64_t memory[2] = {0, 0};
    for (const bool cut : {false, true}) {
      CHECK_NOTHROW(orrery::threads::run(4, [&](auto& on) {
        orrery::counted counting{on};
        orrery::attention_shape shape = grouped;
        shape.length = 64 * 4 * 2;
        orrery::attention<refined<orrery::ring>, orrery::flash<double>> attend{
            counting, shape, orrery::full{}, orrery::zigzag{}, {{}, cut ? chunks : 1}};
        const auto p = oracle::random_problem<double>(conformance::oracle_shape(shape), 7);
        conformance::rank_tensors<orrery::flash<double>> mine{p, attend.query_positions(), attend.key_positions(), {}};
        mine.forward(attend);
        mine.backward(attend);
        if (on.rank() != 1) return;
        bytes[cut] = counting.bytes_sent();
        memory[cut] = attend.workspace_bytes();
      }));
    }
    CHECK(bytes[0] > 0);
    CHECK(bytes[0] == bytes[1]);
    CHECK(memory[0] == memory[1]);
  }
}

}  // namespace conformance_chunks_test
