// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Attention on one GPU, 32 query heads, 8 key heads of 128, bfloat16: cuDNN called directly, the operator with cuDNN's
// adapter, and with the library's own kernel. TFLOP/s, counting 4 (forward) and 10 (backward) times head dimension for
// each visible pair and query head.
#include <cstdint>
#include <cstdio>
#include <exception>

#include <cuda_runtime.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/device_cudnn.cuh"
#include "orrery/kernel/device_cudnn_graphs.hpp"
#include "orrery/kernel/device_flash.cuh"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/device.hpp"

#include "common/arguments.hpp"
#include "common/device_timing.hpp"

namespace {

using orrery::bfloat16;

constexpr std::int64_t heads = 32, key_heads = 8, dim = 128;

struct times {
  double forward;
  double backward;
};

/// A trainer's tensors.
struct tensors {
  bench::device_numbers<bfloat16> q, k, v, out, grad_out, grad_q, grad_k, grad_v;
  bench::device_numbers<float> lse;

  explicit tensors(std::int64_t tokens)
      : q{tokens * heads * dim},
        k{tokens * key_heads * dim},
        v{tokens * key_heads * dim},
        out{tokens * heads * dim},
        grad_out{tokens * heads * dim},
        grad_q{tokens * heads * dim},
        grad_k{tokens * key_heads * dim},
        grad_v{tokens * key_heads * dim},
        lse{tokens * heads} {}
};

times direct(const tensors& t, std::int64_t tokens, bool causal) {
  const orrery::detail::cuda_stream stream;
  orrery::cudnn_graphs engine;
  orrery::detail::cudnn_call call;
  call.causal = causal;
  call.scale = 0.088f;
  call.batch = 1;
  call.query_heads = heads;
  call.key_heads = key_heads;
  call.queries = call.keys = tokens;
  call.key_dim = call.value_dim = dim;
  call.q = call.grad_out = {tokens * heads * dim, dim, heads * dim};
  call.k = call.v = {tokens * key_heads * dim, dim, key_heads * dim};
  // Results lie as a trainer's tensors do.
  call.in_place = true;
  call.out = call.q;
  const auto time = [&](bool backward) {
    call.backward = backward;
    if (backward) {
      call.grad_q = call.q;
      call.grad_k = call.grad_v = call.k;
    }
    const int plan = engine.plan(call);
    const orrery::detail::device_memory workspace{engine.workspace_bytes(plan)};
    const orrery::detail::cudnn_tensors all{t.q.data(),      t.k.data(),      t.v.data(),
                                            t.out.data(),    t.lse.data(),    t.grad_out.data(),
                                            t.grad_q.data(), t.grad_k.data(), t.grad_v.data()};
    return bench::milliseconds_of(stream.get(), 5, [&] { engine.run(plan, {stream.get()}, all, workspace.data()); });
  };
  const double forward = time(false);
  return {forward, time(true)};
}

template <class Kernel, class Mask>
times by_operator(const tensors& t, std::int64_t tokens, const Mask& mask) {
  times measured{};
  orrery::device::run(1, [&](auto& world) {
    orrery::attention<orrery::ring, Kernel> attend{
        world, {.length = tokens, .query_heads = heads, .key_heads = key_heads, .head_dim = dim}, mask};
    const auto view = [&](const auto& numbers, std::int64_t of_heads) {
      return orrery::batch_sequence_head_dim(numbers.data(), 1, tokens, of_heads, dim);
    };
    const auto lse = orrery::batch_head_sequence(t.lse.data(), 1, heads, tokens);
    measured.forward = bench::milliseconds_of(world.stream(), 5, [&] {
      attend.forward(view(t.q, heads), view(t.k, key_heads), view(t.v, key_heads), view(t.out, heads), lse);
    });
    measured.backward = bench::milliseconds_of(world.stream(), 5, [&] {
      attend.backward(view(t.q, heads), view(t.k, key_heads), view(t.v, key_heads), view(t.out, heads), lse,
                      view(t.grad_out, heads), view(t.grad_q, heads), view(t.grad_k, key_heads),
                      view(t.grad_v, key_heads));
    });
  });
  return measured;
}

}  // namespace

int main(int argc, char** argv) try {
  bench::arguments{argc, argv, "bench_kernel_cudnn_attention"}.finish();
  cudaDeviceProp device;
  orrery::detail::check_cuda(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  std::printf("%s, cuDNN %zu\n%8s %8s %-28s %10s %10s\n", device.name, cudnnGetVersion(), "tokens", "mask", "",
              "forward", "backward");
  for (const std::int64_t tokens : {4096, 8192, 16384}) {
    const tensors t{tokens};
    for (const bool causal : {false, true}) {
      const double pairs = static_cast<double>(tokens) * static_cast<double>(causal ? (tokens + 1) / 2 : tokens);
      const auto report = [&](const char* name, const times& measured) {
        const auto rate = [&](double flop, double milliseconds) {
          return flop * static_cast<double>(dim * heads) * pairs / milliseconds / 1e9;
        };
        std::printf("%8lld %8s %-28s %10.1f %10.1f\n", static_cast<long long>(tokens), causal ? "causal" : "full", name,
                    rate(4, measured.forward), rate(10, measured.backward));
      };
      report("cuDNN", direct(t, tokens, causal));
      using adapter = orrery::device_cudnn<bfloat16>;
      using flash = orrery::device_flash<bfloat16, 128>;
      if (causal) {
        report("operator, device_cudnn", by_operator<adapter>(t, tokens, orrery::causal{}));
        report("operator, device_flash", by_operator<flash>(t, tokens, orrery::causal{}));
      } else {
        report("operator, device_cudnn", by_operator<adapter>(t, tokens, orrery::full{}));
        report("operator, device_flash", by_operator<flash>(t, tokens, orrery::full{}));
      }
    }
  }
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
