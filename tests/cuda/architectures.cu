// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// A little of the device code, compiled for every architecture that is supported.
#include <span>

#include "orrery/kernel/device_context.hpp"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/kernel/mask.hpp"
#include "orrery/kernel/tile.hpp"
#include "orrery/kernel/view.hpp"

template <class T>
using kernel = orrery::device_reference<T>;

void enqueue(const orrery::device_context& context, const orrery::tensor_view<orrery::bfloat16>& tensor,
             std::span<const orrery::forward_queries<orrery::bfloat16, float>> queries,
             std::span<const orrery::forward_keys<orrery::bfloat16>> keys) {
  kernel<orrery::bfloat16>::copy(context, tensor, tensor);
  kernel<orrery::bfloat16>::forward(context, queries, keys, {}, 1.0f, orrery::causal{});
}
