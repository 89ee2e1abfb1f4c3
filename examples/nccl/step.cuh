// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdio>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <orrery/attention.hpp>
#include <orrery/device/handles.hpp>
#include <orrery/kernel/device_reference.cuh>
#include <orrery/layout/layout.hpp>
#include <orrery/topology/wallfacer.hpp>
#include <orrery/transport/nccl.hpp>

/// What a trainer does once it has a communicator and a stream: one forward and backward over all ranks. `run` prints
/// this rank's loss, the sum of its outputs.
inline void run_step(ncclComm_t comm) {
  constexpr orrery::attention_shape shape{.length = 1024, .query_heads = 8, .key_heads = 4, .head_dim = 64};
  const orrery::detail::cuda_stream stream;
  orrery::nccl::world world{comm, stream.get(), {.deadline = 30}};
  orrery::attention<orrery::wallfacer<1>, orrery::device_reference<float>> attend{world, shape, orrery::causal{},
                                                                                  orrery::zigzag{}};

  const std::int64_t tokens = attend.query_positions().size();
  const std::int64_t of_queries = tokens * shape.query_heads * shape.head_dim;
  const std::int64_t of_keys = tokens * *shape.key_heads * shape.head_dim;
  const orrery::detail::device_memory memory{(4 * of_queries + 4 * of_keys + tokens * shape.query_heads) *
                                             std::int64_t{sizeof(float)}};
  auto* const numbers = reinterpret_cast<float*>(memory.data());
  // Q, dO, K, V: some numbers; then dQ and out, dK and dV, and the log-sum-exp.
  std::vector<float> some(static_cast<std::size_t>(2 * of_queries + 2 * of_keys));
  for (std::size_t i = 0; i < some.size(); ++i) some[i] = static_cast<float>(i * 7919 % 1000) / 500 - 1;
  orrery::detail::check_cuda(
      cudaMemcpyAsync(numbers, some.data(), some.size() * sizeof(float), cudaMemcpyHostToDevice, stream.get()),
      "cudaMemcpyAsync");
  const auto queries = [&](std::int64_t at) {
    return orrery::batch_sequence_head_dim(numbers + at, 1, tokens, shape.query_heads, shape.head_dim);
  };
  const auto keys = [&](std::int64_t at) {
    return orrery::batch_sequence_head_dim(numbers + at, 1, tokens, *shape.key_heads, shape.head_dim);
  };
  const auto q = queries(0);
  const auto grad_out = queries(of_queries);
  const auto k = keys(2 * of_queries);
  const auto v = keys(2 * of_queries + of_keys);
  const auto results = static_cast<std::int64_t>(some.size());
  const auto out = queries(results);
  const auto grad_q = queries(results + of_queries);
  const auto grad_k = keys(results + 2 * of_queries);
  const auto grad_v = keys(results + 2 * of_queries + of_keys);
  const auto lse =
      orrery::batch_head_sequence(numbers + results + 2 * of_queries + 2 * of_keys, 1, shape.query_heads, tokens);

  attend.forward(q, k, v, out, lse);
  attend.backward(q, k, v, out, lse, grad_out, grad_q, grad_k, grad_v);

  std::vector<float> outputs(static_cast<std::size_t>(of_queries));
  orrery::detail::check_cuda(
      cudaMemcpyAsync(outputs.data(), out.data, outputs.size() * sizeof(float), cudaMemcpyDeviceToHost, stream.get()),
      "cudaMemcpyAsync");
  world.synchronize();
  double sum = 0;
  for (const float one : outputs) sum += static_cast<double>(one);
  std::printf("rank %d of %d: %lld tokens, outputs sum to %.6f\n", world.rank(), world.size(),
              static_cast<long long>(tokens), sum);
}
