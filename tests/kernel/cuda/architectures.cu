// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// A little of the device code, compiled for every architecture that is supported.
#include <span>

#include "orrery/attention/tile.hpp"
#include "orrery/device/context.hpp"
#include "orrery/device/gpu.cuh"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/flash_backward.cuh"
#include "orrery/kernel/cuda/wgmma/backward.cuh"
#include "orrery/kernel/cuda/wgmma/forward.cuh"
#include "orrery/kernel/device_flash.cuh"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/mask/causal.hpp"
#include "orrery/tensor/view.hpp"

template <class T>
using kernel = orrery::device_reference<T>;

void enqueue(const orrery::device_context& context, const orrery::tensor_view<orrery::bfloat16>& tensor,
             std::span<const orrery::forward_queries<orrery::bfloat16, float>> queries,
             std::span<const orrery::forward_keys<orrery::bfloat16>> keys) {
  kernel<orrery::bfloat16>::copy(context, tensor, tensor);
  kernel<orrery::bfloat16>::forward(context, queries, keys, {}, 1.0f, orrery::causal{});
}

void enqueue(const orrery::device_context& context,
             std::span<const orrery::forward_queries<orrery::bfloat16, float>> queries,
             std::span<const orrery::forward_keys<orrery::bfloat16>> keys,
             std::span<const orrery::backward_queries<orrery::bfloat16, float>> backward_queries,
             std::span<const orrery::backward_keys<orrery::bfloat16, float>> backward_keys) {
  using flash = orrery::device_flash<orrery::bfloat16, 64>;
  flash::forward(context, queries, keys, {}, 1.0f, orrery::causal{});
  flash::backward(context, backward_queries, backward_keys, {}, 1.0f, orrery::causal{});
}

// The kernels of compute capability 9.0 are the same program's: elsewhere they are empty, and never launched.
void enqueue(const orrery::device_context& context,
             const orrery::detail::device_blocks<orrery::forward_queries<orrery::bfloat16, float>>& queries,
             const orrery::detail::device_blocks<orrery::forward_keys<orrery::bfloat16>>& keys) {
  using body = orrery::detail::device_flash_wgmma_forward<orrery::bfloat16, orrery::causal, 128, 128>;
  orrery::detail::gpu::launch_warpgroups<body::threads_of_block>(
      context, 1, body::shared_bytes, body::on<orrery::detail::gpu>(queries, keys, {}, 1.0f, {}));
}

template <orrery::device_gradient gradient>
void enqueue_gradient(const orrery::device_context& context,
                      const orrery::detail::device_blocks<orrery::backward_queries<orrery::bfloat16, float>>& queries,
                      const orrery::detail::device_blocks<orrery::backward_keys<orrery::bfloat16, float>>& keys) {
  using body = orrery::detail::device_flash_wgmma_backward<orrery::bfloat16, orrery::causal, 128, 128, gradient>;
  orrery::detail::gpu::launch_warpgroups<body::threads_of_block>(
      context, 1, body::shared_bytes, body::template on<orrery::detail::gpu>(queries, keys, {}, 1.0f, {}));
}

void enqueue(const orrery::device_context& context,
             const orrery::detail::device_blocks<orrery::backward_queries<orrery::bfloat16, float>>& queries,
             const orrery::detail::device_blocks<orrery::backward_keys<orrery::bfloat16, float>>& keys) {
  enqueue_gradient<orrery::device_gradient::of_queries>(context, queries, keys);
  enqueue_gradient<orrery::device_gradient::of_keys_and_values>(context, queries, keys);
}
