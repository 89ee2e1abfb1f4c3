// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The graphs that are made for cuDNN, before cuDNN itself: is each of them what one of its engines computes? Needs no
// GPU: devices are described to cuDNN.
#include <cstdint>
#include <string>
#include <utility>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include "orrery/kernel/cudnn/call.hpp"

#include "kernel/cudnn/engine.hpp"

namespace {

/// q and grad_out as packed blocks, k and v as a trainer's own.
orrery::detail::cudnn_call call_of(std::int64_t queries, std::int64_t keys, std::int64_t key_dim,
                                   std::int64_t value_dim) {
  orrery::detail::cudnn_call call;
  call.scale = 0.125f;
  call.batch = 2;
  call.query_heads = 8;
  call.key_heads = 2;
  call.queries = queries;
  call.keys = keys;
  call.key_dim = key_dim;
  call.value_dim = value_dim;
  call.q = orrery::detail::cudnn_strides::packed(8, 2 * queries, key_dim);
  call.k = {keys * 2 * key_dim, key_dim, 2 * key_dim};
  call.v = {keys * 2 * value_dim, value_dim, 2 * value_dim};
  call.grad_out = orrery::detail::cudnn_strides::packed(8, 2 * queries, value_dim);
  call.pack_results();
  return call;
}

}  // namespace

TEST_CASE("cuDNN has every call, full and causal, forward and deterministic backward") {
  for (const int capability : {80, 90, 100}) {
    for (const auto& [key_dim, value_dim] :
         {std::pair{64, 64}, {96, 96}, {128, 128}, {40, 72}, {192, 128}, {256, 256}}) {
      for (const auto& [queries, keys] : {std::pair{512, 1024}, {512, 512}, {33, 47}, {1, 7}, {8192, 8192}}) {
        for (const bool backward : {false, true}) {
          for (const bool causal : {false, true}) {
            for (const orrery::detail::cudnn_type type :
                 {orrery::detail::cudnn_type::bfloat16, orrery::detail::cudnn_type::float16}) {
              orrery::detail::cudnn_call call = call_of(queries, keys, key_dim, value_dim);
              call.backward = backward;
              call.causal = causal;
              call.type = type;
              call.pack_results();
              const bool expected =
                  !backward || key_dim <= 128 || capability == 90 || (capability == 100 && key_dim == 192);
              INFO(call.text(), " on ", capability);
              const std::string why = cudnn_test::unsupported(call, capability);
              INFO(why);
              CHECK(why.empty() == expected);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("results that lie as a trainer's tensors, all heads and some of them") {
  for (const int capability : {80, 90, 100}) {
    for (const std::int64_t dim : {64, 128}) {
      for (const std::int64_t of_each : {1, 4}) {
        for (const bool backward : {false, true}) {
          for (const bool causal : {false, true}) {
            // 2 key heads of 8 query heads, in tensors of as many or of four times as many.
            orrery::detail::cudnn_call call = call_of(512, 512, dim, dim);
            const auto trainers = [&](std::int64_t heads) {
              return orrery::detail::cudnn_strides{512 * heads * of_each * dim, dim, heads * of_each * dim};
            };
            call.backward = backward;
            call.causal = causal;
            call.in_place = true;
            call.q = call.out = trainers(8);
            call.k = call.v = trainers(2);
            if (backward) {
              call.grad_out = call.grad_q = trainers(8);
              call.grad_k = call.grad_v = trainers(2);
            }
            INFO(call.text(), " on ", capability);
            CHECK(cudnn_test::unsupported(call, capability) == "");
          }
        }
      }
    }
  }
}

TEST_CASE("more queries than keys, all of which they see") {
  for (const bool backward : {false, true}) {
    orrery::detail::cudnn_call call = call_of(512, 64, 128, 128);
    call.backward = backward;
    call.pack_results();
    CHECK(cudnn_test::unsupported(call, 90) == "");
    call.causal = true;
    CHECK(cudnn_test::unsupported(call, 90) != "");  // no causal part is such
  }
}

TEST_CASE("without a device") {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return;
  const std::string message = cudnn_test::sentence_without_device();
  INFO(message);
  CHECK(message.find("orrery: cudnnCreate in ") == 0);
  CHECK(message.find("a CUDA device, a driver as new as the toolkit and the libraries of cuDNN are needed") !=
        std::string::npos);
}
