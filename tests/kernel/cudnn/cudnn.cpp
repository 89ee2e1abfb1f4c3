// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The adapter for cuDNN's attention on a double of it, through whole operators over the transport `device`: its own
// kernels on the emulated device, when the streams of the runtime double come to them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/device_cudnn.cuh"
#include "orrery/layout/chunked.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/transport/device.hpp"

#include "device/messages.hpp"
#include "device/runtime_double.hpp"
#include "device/streamed_device.hpp"
#include "kernel/cudnn/double.hpp"
#include "support/any.hpp"
#include "transport/device/conformance.hpp"

namespace {

using cuda_test::message_of_exception;
using cuda_test::streamed_device;
using orrery::bfloat16;
using orrery::float16;
template <class T>
using kernel = orrery::device_cudnn<T, cudnn_double::engine, streamed_device>;
using attention = orrery::attention<orrery::any_topology, kernel<bfloat16>>;

constexpr auto on_devices = [](int ranks, auto&& body) { orrery::device::run(ranks, body); };

/// Races, misuse and leaks.
std::string found_by_doubles() {
  cuda_test::enqueued_work::forget();
  std::string all = cudnn_double::all.faults;
  for (const std::string& one : cuda_double::faults()) all += one + "\n";
  return all + cuda_double::leaks();
}

template <class T, class Mask>
void check(int world, const orrery::attention_shape& shape, const Mask& mask, const conformance::any_layout& layout,
           const orrery::any_topology& topology) {
  static std::uint64_t seed = 0;
  cuda_double::reset({.seed = ++seed});
  cudnn_double::reset();
  INFO(topology.name(), " over ", world, ", ", mask.name(), ", ", layout.name(), ", seed ", seed);
  CHECK(cuda_test::failures<orrery::any_topology, kernel<T>, orrery::device::world>(on_devices, world, shape, mask,
                                                                                    layout, seed, topology) == "");
  CHECK(found_by_doubles() == "");
}

/// A case of conformance whose trainers have tensors as plans expect them, if the seed is a multiple of 6.
constexpr orrery::attention_shape shape{
    .batch = 2, .length = 26, .query_heads = 6, .key_heads = 3, .head_dim = 8, .value_dim = 16};

}  // namespace

TEST_CASE("results over every topology, both backwards") {
  for (const int world : {1, 4}) {
    for (const orrery::any_topology& topology : any::topologies()) {
      for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
        if (topology.unsupported_reason(world, orrery::pass::forward) != nullptr ||
            topology.unsupported_reason(world, circulate) != nullptr) {
          continue;
        }
        orrery::attention_shape how = shape;
        how.circulate = circulate;
        check<bfloat16>(world, how, orrery::causal{}, orrery::zigzag{}, topology);
      }
    }
  }
}

TEST_CASE("results under masks and layouts, of lengths that do not divide, and of queries that see nothing") {
  const std::vector<conformance::any_layout> layouts{orrery::contiguous{}, orrery::zigzag{}, orrery::striped<1>{}};
  for (const conformance::any_layout& layout : layouts) {
    for (const int world : {2, 3}) {
      for (const std::int64_t offset : {0, 5, -9, 1000}) {
        const orrery::attention_shape how{.length = 19, .query_heads = 2, .head_dim = 8, .key_length = 23};
        check<float16>(world, how, orrery::causal{offset}, layout, orrery::ring{});
      }
      check<bfloat16>(world, {.length = 9, .query_heads = 3, .key_heads = 1, .head_dim = 16}, orrery::full{}, layout,
                      orrery::all_gather{});
    }
  }
  // Single pairs, which cuDNN's backward does not have: shards of one token, and corners of the mask.
  for (const std::int64_t offset : {0, 1, -1}) {
    const orrery::attention_shape how{.length = 3, .query_heads = 4, .key_heads = 2, .head_dim = 8};
    check<bfloat16>(3, how, orrery::causal{offset}, orrery::contiguous{}, orrery::ring{});
    check<bfloat16>(2, how, orrery::causal{offset}, orrery::zigzag{}, orrery::ulysses{});
  }
}

TEST_CASE("results of pruned schedules of chunks, and the plans of their tiles") {
  for (const conformance::any_layout& layout : {conformance::any_layout{orrery::chunked{orrery::contiguous{}, 3}},
                                                conformance::any_layout{orrery::chunked{orrery::zigzag{}, 2}}}) {
    for (const orrery::any_topology& topology :
         {orrery::any_topology{orrery::ring{}}, orrery::any_topology{orrery::all_gather{}}}) {
      for (const std::int64_t offset : {0, -7}) check<bfloat16>(3, shape, orrery::causal{offset}, layout, topology);
    }
  }
  // Own pairs of chunks, of 6 tokens each: triangles on the diagonal, and rectangles below it; and on rank 1 rectangles
  // with the other rank's keys, of which rank 0 needs none, to whom nothing is sent.
  cuda_double::reset({});
  cudnn_double::reset();
  orrery::device::run(2, [&](auto& on) {
    const attention attend{on,
                           {.length = 24, .head_dim = 8, .forward_only = true},
                           orrery::causal{},
                           orrery::chunked{orrery::contiguous{}, 2},
                           orrery::ring{}};
    CHECK(attend.traffic().ranks[0].messages_received == 0);
  });
  for (const cudnn_double::record& engine : cudnn_double::all.engines) {
    for (const orrery::detail::cudnn_call& call : engine.planned) CHECK((call.queries == 6 && call.keys == 6));
    CHECK((engine.planned.size() == 2 || engine.planned.size() == 3));
  }
  CHECK(found_by_doubles() == "");
}

TEST_CASE("plans are made once for each distinct call, before the first") {
  cuda_double::reset({});
  cudnn_double::reset();
  const auto p = oracle::random_problem<bfloat16>(conformance::oracle_shape({.length = 64, .head_dim = 8}), 6);
  orrery::device::run(4, [&](auto& on) {
    cuda_test::device_attention<orrery::any_topology, kernel<bfloat16>, orrery::device::world> attend{
        on, {.length = 64, .head_dim = 8}, orrery::causal{}, orrery::zigzag{}, orrery::ring{}};
    conformance::rank_tensors<kernel<bfloat16>> mine{p, attend.query_positions(), attend.key_positions(),
                                                     conformance::trainer_memory::of(6)};
    for (int i = 0; i < 3; ++i) attend.call(mine);
  });
  CHECK(found_by_doubles() == "");
  REQUIRE(cudnn_double::all.engines.size() == 4);
  // Own queries with own keys, causal; own queries with the keys of earlier and of later ranks: each forward and
  // backward. The first and the last rank have no earlier or no later ones. Engines are in the order in which ranks
  // made them.
  std::vector<std::size_t> planned;
  for (const cudnn_double::record& engine : cudnn_double::all.engines) {
    planned.push_back(engine.planned.size());
    CHECK(engine.run.size() == 3 * 2 * 4);
  }
  std::sort(planned.begin(), planned.end());
  CHECK(planned == std::vector<std::size_t>{4, 4, 6, 6});
}

TEST_CASE("tensors that lie as plans expect are read in place; others are copied once a call") {
  for (const std::uint64_t seed : {6u, 7u}) {
    cuda_double::reset({});
    cudnn_double::reset();
    const auto p = oracle::random_problem<bfloat16>(conformance::oracle_shape(shape), seed);
    orrery::device::run(2, [&](auto& on) {
      attention attend{on, shape, orrery::full{}, orrery::contiguous{}, orrery::ring{}};
      conformance::rank_tensors<kernel<bfloat16>> host{p, attend.query_positions(), attend.key_positions(),
                                                       conformance::trainer_memory::of(seed)};
      cuda_test::device_tensors<kernel<bfloat16>> tensors{host, on.stream()};
      tensors.forward(attend);
      tensors.backward(attend);
      tensors.fetch();
      on.synchronize();
      int in_place = 0;
      for (const cudnn_double::record& engine : cudnn_double::all.engines) {
        for (const orrery::detail::cudnn_tensors& one : engine.tensors) {
          in_place += (one.q == tensors.q.view().data ? 1 : 0) + (one.k == tensors.k.view().data ? 1 : 0) +
                      (one.grad_out == tensors.grad_out.view().data ? 1 : 0);
        }
      }
      // Of the two steps of each pass: q in both, k in the first, grad_out in both of the backward.
      if (in_place != (seed == 6 ? 2 + 1 + 2 + 1 + 2 : 0)) {
        throw std::runtime_error{std::to_string(in_place) + " tensors were read in place"};
      }
    });
    CHECK(found_by_doubles() == "");
  }
}

TEST_CASE("on one rank a call is cuDNN's, from and to the trainer's tensors, and nothing else") {
  // Where the trainer's tensors lie as expected, a forward enqueues one function, and so does a backward. Where they do
  // not, copies of them come along: of q, k, v and out; and of q, k, v, grad_out, out and the three gradients, of which
  // odd memory fits some.
  struct expected {
    std::uint64_t memory;
    int forward;
    int backward;
  };
  for (const expected& how : {expected{6, 1, 1}, {7, 5, 9}}) {
    for (const std::int64_t offset : {0, 1000}) {
      cuda_double::reset({});
      cudnn_double::reset();
      const auto p = oracle::random_problem<bfloat16>(conformance::oracle_shape(shape), how.memory);
      orrery::device::run(1, [&](auto& on) {
        const orrery::causal mask{offset};
        attention attend{on, shape, mask, orrery::zigzag{}, orrery::ring{}};
        conformance::rank_tensors<kernel<bfloat16>> host{p, attend.query_positions(), attend.key_positions(),
                                                         conformance::trainer_memory::of(how.memory)};
        cuda_test::device_tensors<kernel<bfloat16>> tensors{host, on.stream()};
        const auto enqueued = [&](const auto& call) {
          const int before = cuda_double::calls("cudaLaunchHostFunc");
          call();
          return cuda_double::calls("cudaLaunchHostFunc") - before;
        };
        // In the order [batch, head, token], where the suite's has others.
        std::vector<float> numbers(static_cast<std::size_t>(shape.batch * shape.query_heads * shape.length));
        const auto bytes = static_cast<std::int64_t>(numbers.size() * sizeof(float));
        const orrery::detail::device_memory of_lse{bytes};
        const auto rows = [&](float* data) {
          return orrery::batch_head_sequence(data, shape.batch, shape.query_heads, shape.length);
        };
        const auto lse = rows(reinterpret_cast<float*>(of_lse.data()));
        for (int i = 0; i < 2; ++i) {
          CHECK(enqueued([&] {
                  attend.forward(tensors.q.view(), tensors.k.view(), tensors.v.view(), tensors.out.view(), lse);
                }) == how.forward);
          CHECK(enqueued([&] {
                  attend.backward(tensors.q.view(), tensors.k.view(), tensors.v.view(), tensors.out.view(), lse,
                                  tensors.grad_out.view(), tensors.grad_q.view(), tensors.grad_k.view(),
                                  tensors.grad_v.view());
                }) == how.backward);
        }
        tensors.fetch();
        orrery::detail::check_cuda(cudaMemcpyAsync(numbers.data(), of_lse.data(), static_cast<std::size_t>(bytes),
                                                   cudaMemcpyDeviceToHost, on.stream()),
                                   "cudaMemcpyAsync");
        on.synchronize();
        const auto packed = rows(numbers.data());
        for (std::int64_t b = 0; b < shape.batch; ++b) {
          for (std::int64_t h = 0; h < shape.query_heads; ++h) {
            for (std::int64_t t = 0; t < shape.length; ++t) *host.lse.view().at(b, h, t) = *packed.at(b, h, t);
          }
        }
        CHECK(host.mismatch(p, oracle::solve(p, mask), attend.query_positions(), attend.key_positions()) == "");
        const cudnn_double::record& engine = cudnn_double::all.engines.at(0);
        CHECK(engine.planned.size() == 2);
        REQUIRE(engine.tensors.size() == 4);
        CHECK((engine.tensors[0].out == tensors.out.view().data) == (how.memory == 6));
        CHECK(engine.tensors[0].lse == lse.data);
        CHECK(engine.tensors[1].lse == lse.data);
        CHECK((engine.tensors[1].out == tensors.out.view().data) == (how.memory == 6));
        CHECK((engine.tensors[1].grad_q == tensors.grad_q.view().data) == (how.memory == 6));
        CHECK((engine.tensors[1].grad_k == tensors.grad_k.view().data) == (how.memory == 6));
        CHECK((engine.tensors[1].grad_v == tensors.grad_v.view().data) == (how.memory == 6));
        // No memory for sums, which would be float: a copy of each tensor, of 16 bits, log-sum-exp, and cuDNN's own.
        const std::int64_t query = shape.batch * shape.query_heads * shape.length;
        const std::int64_t key = shape.batch * *shape.key_heads * shape.length;
        const std::int64_t elements =
            query * 2 * (shape.head_dim + *shape.value_dim) + key * 2 * (shape.head_dim + *shape.value_dim);
        const std::int64_t workspace = query * shape.length * 2;
        CHECK(attend.workspace_bytes() >= 2 * elements + 4 * query + workspace);
        CHECK(attend.workspace_bytes() <= 2 * elements + 4 * query + workspace + 10 * 256);
      });
      CHECK(found_by_doubles() == "");
    }
  }
}

TEST_CASE("on one rank, where not every token is seen or calls are cut, results are right all the same") {
  for (const std::int64_t offset : {-3, -26, 3}) {
    check<bfloat16>(1, shape, orrery::causal{offset}, orrery::contiguous{}, orrery::ring{});
    check<float16>(1, {.length = 19, .query_heads = 2, .head_dim = 8, .key_length = 23}, orrery::causal{offset},
                   orrery::zigzag{}, orrery::ring{});
  }
  for (const std::int64_t length : {1, 2, 9}) {
    check<bfloat16>(1, {.length = length, .query_heads = 4, .key_heads = 2, .head_dim = 8}, orrery::causal{},
                    orrery::contiguous{}, orrery::ulysses{});
  }
  // Backward calls of one key head, and of two.
  for (const std::uint64_t seed : {6u, 7u, 8u}) {
    cuda_double::reset({.seed = seed});
    cudnn_double::reset();
    cudnn_double::all.workspace = [](const orrery::detail::cudnn_call& call) {
      return call.backward && call.key_heads > 2 ? (std::int64_t{1} << 30) + 1 : 32;
    };
    CHECK(cuda_test::failures<orrery::any_topology, kernel<bfloat16>, orrery::device::world>(
              on_devices, 1, shape, orrery::causal{}, orrery::contiguous{}, seed, orrery::ring{}) == "");
    CHECK(found_by_doubles() == "");
  }
}

TEST_CASE("copies of a trainer's tensors are of the call") {
  using tensors = conformance::rank_tensors<kernel<bfloat16>>;
  cuda_double::reset({});
  cudnn_double::reset();
  const conformance::trainer_memory odd = conformance::trainer_memory::of(7);
  const auto first = oracle::random_problem<bfloat16>(conformance::oracle_shape(shape), 1);
  const auto second = oracle::random_problem<bfloat16>(conformance::oracle_shape(shape), 2);
  orrery::device::run(1, [&](auto& on) {
    attention attend{on, shape, orrery::causal{}, orrery::contiguous{}, orrery::ring{}};
    tensors host{first, attend.query_positions(), attend.key_positions(), odd};
    tensors other{second, attend.query_positions(), attend.key_positions(), odd};
    cuda_test::device_tensors<kernel<bfloat16>> mine{host, on.stream()};
    cuda_test::device_tensors<kernel<bfloat16>> others{other, on.stream()};
    const auto call = [&](auto& one) {
      one.forward(attend);
      one.backward(attend);
    };
    call(mine);
    call(others);
    others.fetch();
    on.synchronize();
    const std::string wrong = other.mismatch(second, oracle::solve(second, orrery::causal{}), attend.query_positions(),
                                             attend.key_positions());
    if (!wrong.empty()) throw std::runtime_error{wrong};
  });
  CHECK(found_by_doubles() == "");
}

TEST_CASE("calls are cut by key heads where their workspace would be too large") {
  cuda_double::reset({});
  cudnn_double::reset();
  cudnn_double::all.workspace = [](const orrery::detail::cudnn_call& call) {
    return call.backward && call.key_heads > 2 ? (std::int64_t{1} << 30) + 1 : 32;
  };
  const orrery::attention_shape how{.length = 12, .query_heads = 14, .key_heads = 7, .head_dim = 8};
  CHECK(cuda_test::failures<orrery::any_topology, kernel<bfloat16>, orrery::device::world>(
            on_devices, 2, how, orrery::full{}, orrery::contiguous{}, 3, orrery::ring{}) == "");
  CHECK(found_by_doubles() == "");
  for (const cudnn_double::record& engine : cudnn_double::all.engines) {
    for (const orrery::detail::cudnn_call& call : engine.run)
      CHECK(call.key_heads == (call.backward ? call.key_heads : 7));
    const auto of = [&](std::int64_t heads) {
      return std::count_if(engine.run.begin(), engine.run.end(), [&](const orrery::detail::cudnn_call& call) {
        return call.backward && call.key_heads == heads && call.query_heads == 2 * heads;
      });
    };
    CHECK(of(2) == 2 * 2 * 3);
    CHECK(of(1) == 2 * 2 * 1);
  }
}

TEST_CASE("what cuDNN or the kernel does not have is refused on every rank, before anything is enqueued") {
  const auto refusal = [](orrery::attention_shape how, const auto& mask, const conformance::any_layout& layout) {
    cuda_double::reset({});
    return message_of_exception([&] {
      orrery::device::run(2, [&](auto& on) { attention{on, how, mask, layout, orrery::ring{}}; });
    });
  };
  cudnn_double::reset();
  CHECK(refusal({.length = 8, .head_dim = 12}, orrery::full{}, orrery::contiguous{}) ==
        "orrery: rank 0: head_dim is 12, but kernel device_cudnn<bfloat16> needs a multiple of 8; orrery::device_flash "
        "takes any");
  CHECK(refusal({.length = 8, .head_dim = 8, .value_dim = 4}, orrery::full{}, orrery::contiguous{}) ==
        "orrery: rank 0: value_dim is 4, but kernel device_cudnn<bfloat16> needs a multiple of 8; orrery::device_flash "
        "takes any");
  CHECK(refusal({.length = 8, .head_dim = 512}, orrery::full{}, orrery::contiguous{}) ==
        "orrery: rank 0: head_dim is 512, but kernel device_cudnn<bfloat16> goes up to 256; orrery::reference has no "
        "limit");
  CHECK(
      refusal({.length = 16, .head_dim = 8}, any::mask{4, 0}, orrery::contiguous{}) ==
      "orrery: rank 0: mask mask 4/0/0 lets only some pairs be seen between queries at positions 0 to 7 and keys at 0 "
      "to 7, of which kernel device_cudnn<bfloat16> only knows full and causal masks; orrery::device_flash has every "
      "mask");
  // In chunks the message has the positions of chunks.
  CHECK(refusal({.length = 16, .head_dim = 8}, any::mask{4, 0}, orrery::chunked{orrery::contiguous{}, 2}) ==
        "orrery: rank 0: mask mask 4/0/0 lets only some pairs be seen between queries at positions 0 to 3 and keys at "
        "0 to 3, of which kernel device_cudnn<bfloat16> only knows full and causal masks; orrery::device_flash has "
        "every mask");
  cudnn_double::all.refuses = [](const orrery::detail::cudnn_call& call) { return call.keys == 5 ? "odd" : ""; };
  CHECK(
      refusal({.length = 8, .query_heads = 2, .head_dim = 8, .key_length = 9}, orrery::full{}, orrery::contiguous{}) ==
      "orrery: rank 0: cuDNN does not have the forward of 4 queries and 5 keys, batch 1, 2 query heads and 2 key "
      "heads of dimensions 8 and 8: odd");
  cudnn_double::all.refuses = [](const orrery::detail::cudnn_call& call) {
    return call.causal ? "no such engine" : "";
  };
  CHECK(refusal({.length = 8, .query_heads = 2, .head_dim = 8}, orrery::causal{}, orrery::contiguous{}) ==
        "orrery: rank 0: cuDNN does not have the forward of 4 queries and 4 keys, causal, batch 1, 2 query heads and 2 "
        "key heads of dimensions 8 and 8: no such engine");
  CHECK(refusal({.length = 8, .query_heads = 2, .head_dim = 8}, orrery::full{}, orrery::contiguous{}) == "");
  CHECK(cuda_double::leaks() == "");
}

TEST_CASE("delta that is NaN, where grad_out is 0, too; and rows that have seen nothing") {
  constexpr std::size_t tokens = 2, dim = 8;
  alignas(16) bfloat16 grad_out[tokens * dim] = {}, out[tokens * dim] = {};
  float delta[tokens] = {std::numeric_limits<float>::quiet_NaN(), 0};
  float lse[tokens] = {1, -std::numeric_limits<float>::infinity()}, packed[tokens] = {};
  const auto view = [&](bfloat16* data) { return orrery::batch_head_sequence_dim(data, 1, 1, tokens, dim); };
  const auto rows = [&](float* data) { return orrery::batch_head_sequence(data, 1, 1, tokens); };
  orrery::detail::launch_cudnn_rows<emulator::device>(
      {}, orrery::detail::device_cudnn_rows<bfloat16>{view(grad_out), rows(lse), rows(delta), view(out), rows(packed)});
  for (std::size_t i = 0; i < dim; ++i) {
    CHECK(std::isnan(static_cast<float>(out[i])));
    CHECK(static_cast<float>(out[dim + i]) == 0);
  }
  CHECK(packed[0] == 1);
  CHECK(packed[1] == std::numeric_limits<float>::infinity());
}

TEST_CASE("delta, as cuDNN's backward sees it, whatever the size of the gradients") {
  constexpr std::size_t heads = 2, tokens = 70, dim = 24;
  const auto check_scale = [&]<class T>(T, float size, double of_rounding) {
    alignas(16) static T grad_out[heads * tokens * dim];
    alignas(16) static T out[heads * tokens * dim];
    constexpr std::size_t row_count = heads * tokens;
    std::vector<float> delta(row_count), lse(row_count), packed(row_count, -1.0f);
    for (std::size_t i = 0; i < heads * tokens * dim; ++i) {
      grad_out[i] = T{size * static_cast<float>(static_cast<int>(i * 7 % 23) - 11) / 11};
      if (i / dim == 3) grad_out[i] = T{0.0f};
    }
    for (std::size_t row = 0; row < heads * tokens; ++row) {
      // As of an output of ones.
      double sum = 0;
      for (std::size_t c = 0; c < dim; ++c) sum += static_cast<double>(static_cast<float>(grad_out[row * dim + c]));
      delta[row] = static_cast<float>(sum);
      lse[row] = static_cast<float>(row);
    }
    const auto view = [&](T* data) { return orrery::batch_head_sequence_dim(data, 1, heads, tokens, dim); };
    const auto rows = [&](std::vector<float>& data) {
      return orrery::batch_head_sequence(data.data(), 1, heads, tokens);
    };
    orrery::detail::launch_cudnn_rows<emulator::device>(
        {}, orrery::detail::device_cudnn_rows<T>{view(grad_out), rows(lse), rows(delta), view(out), rows(packed)});
    CHECK(packed == lse);
    for (std::size_t row = 0; row < heads * tokens; ++row) {
      double sum = 0, terms = 0, norm = 0;
      for (std::size_t c = row * dim; c < (row + 1) * dim; ++c) {
        const double x = static_cast<double>(static_cast<float>(out[c]));
        const double y = static_cast<double>(static_cast<float>(grad_out[c]));
        sum += x * y;
        terms += std::abs(x * y);
        norm += x * x;
      }
      INFO(row, " ", sum, " ", delta[row]);
      CHECK(std::abs(sum - static_cast<double>(delta[row])) <= of_rounding * std::abs(static_cast<double>(delta[row])));
      CHECK(std::abs(terms - std::abs(sum)) <= 1e-12 * terms);  // of one sign
      CHECK(norm <= 1.01 * dim);
    }
  };
  for (const float size : {1.0f, 1e-20f, 1e30f, 1e37f}) check_scale(bfloat16{}, size, 0x1p-8);
  for (const float size : {1.0f, 6e4f, 1e-3f}) check_scale(float16{}, size, 0x1p-11 * 1.5);
}
