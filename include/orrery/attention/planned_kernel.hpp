// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

namespace orrery {

/// A kernel that not every device can run: `require(head_dim, value_dim)` throws a message where the current one
/// cannot. Operators ask it when they are made, before they let it plan, and every rank's constructor then throws.
template <class Kernel>
concept device_checked_kernel = requires(std::int64_t dim) {
  Kernel::require(dim, dim);
};

/// A kernel whose calls need something that is made before them: a library's handle, execution plans for the shapes of
/// its tiles, a workspace.
///
/// It has a member template `planned<Memory>`, default constructible, of which each operator makes one and keeps it as
/// long as itself; Memory is what the transport's plans live in (constructed with a number of bytes, it has `data()`).
/// The operator calls, before it agrees with the other ranks and in this order,
///
/// - `expect_forward(queries, keys, heads, scale, mask)` for each tile of the forward, and `expect_backward` alike: the
///   arguments of the call to come, but for addresses, which are null. Blocks of the rank's own shard (`own`) are
///   expected to be parts of `batch_sequence_head_dim` tensors, although a call may bring any strides; others are
///   packed, [batch, head, sequence, dim], with the strides that a call will have, at addresses that are multiples of
///   16 bytes if a head's bytes are;
/// - `take_memory()`: all tiles are known.
///
/// What these throw, every rank's constructor throws, as `std::invalid_argument`. Then, for each call of the operator,
///
/// - `begin()`: the trainer's tensors may have other values, or be others, than in the last call;
/// - `forward(context, queries, keys, heads, scale, mask)` or `backward(...)` for each tile, as those of a kernel
///   without a plan. They neither allocate nor wait.
///
/// `bytes()` is what it has taken of Memory.
///
/// It may also have `expect_whole(call, heads, scale, mask)`, which is asked first where a program is one tile, of the
/// rank's own blocks and nothing else, as on one rank: `call` is a `whole_forward` or a `whole_backward` without
/// addresses. If it returns true, `run_whole(context, call, heads, scale, mask)` is called instead of forward or
/// backward, and writes the trainer's tensors; there is then no memory for running sums, and no pass over them.
template <class Kernel, class Memory>
concept planned_kernel = requires(typename Kernel::template planned<Memory> plan) {
  plan.take_memory();
  plan.begin();
  plan.bytes();
};

}  // namespace orrery
