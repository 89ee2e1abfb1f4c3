// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <string>

#include "orrery/device/context.hpp"
#include "orrery/device/gpu.cuh"
#include "orrery/kernel/cuda/backend.cuh"
#include "orrery/kernel/cudnn/call.hpp"
#include "orrery/kernel/cudnn/delta_rows.cuh"
#include "orrery/kernel/cudnn/plan.cuh"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/float16.hpp"

namespace orrery {

/// cuDNN's attention (its graph API's scaled dot product attention, forward and backward) as a kernel: target
/// `orrery::cudnn`, which needs cuDNN 9 and the headers of cudnn-frontend. Include
/// `orrery/kernel/device_cudnn_graphs.hpp`, too, where operators are made.
///
/// T is bfloat16 or float16, as storage. cuDNN's results are of T and cannot be added to others by itself: they go to
/// scratch memory of the operator's plan and are merged into the running sums, which are float, by one kernel more. So
/// compared with `device_flash` every tile's contribution to out, grad_q, grad_k and grad_v is rounded to T once before
/// it is summed: of P tiles each adds at most T's rounding of its own size, and float16's range is that of each of
/// them. Of the backward, see also `device_cudnn_rows`.
///
/// On one rank, where a call is one of cuDNN's (no mask but full and causal, in which every query and in the backward
/// every key is seen), cuDNN reads and writes the trainer's tensors, and nothing else is enqueued: no merge, no sums in
/// float, no second rounding, and for the backward the forward's own output.
///
/// Masks: `full`, `causal` and others that have a `diagonal()`, under the layouts `contiguous`, `zigzag` and
/// `striped<1>`.
///
/// What it has is decided when an operator is made: each pair of blocks must be `cudnn_parts_of` the mask, and cuDNN
/// must have a plan for each of them on this device (head dimensions are multiples of 8; to 128, on some devices to
/// 256). Otherwise the constructor throws, with the mask and the positions, or with the call and cuDNN's words.
/// Execution plans are made for every shape once.
///
/// The backward is deterministic, so that the same call gives the same bits; on devices of compute capability 9.0 and
/// older cuDNN then needs workspace for all pairs of a call, 2 bytes a pair and query head. Calls are cut by key heads
/// until that is at most a GiB, or one key head is left.
///
/// Tokens that the mask hides must hold numbers: what cuDNN makes of an infinity or NaN in them is not known, nor of
/// scores that are not finite. Partial results that are NaN stay so where they are merged with others.
///
/// Tensors of the rank's own shard that are not contiguous as `batch_sequence_head_dim`, or not at multiples of 16
/// bytes, are copied once a call. Calls enqueue and return, and can be captured into a graph.
template <class T, class Engine = cudnn_graphs, class Device = detail::gpu>
struct device_cudnn : detail::device_backend<Device> {
  static_assert(std::same_as<T, bfloat16> || std::same_as<T, float16>,
                "orrery::device_cudnn stores orrery::bfloat16 or orrery::float16; for other element types use "
                "orrery::device_reference");

  using storage = T;
  using accumulator = float;
  using context = device_context;

  static constexpr std::int64_t max_head_dim = detail::device_cudnn_rows<T>::most_dim;

  /// Any mask compiles. The constructor of the operator refuses masks that cuDNN cannot express.
  template <mask Mask>
  static constexpr bool supports = true;

  [[nodiscard]] static std::string name() { return "device_cudnn<" + detail::element_name<T>() + ">"; }

  /// Throws `std::invalid_argument` unless the current device has the compute capability that cuDNN's attention needs,
  /// and the program code for it, and `device_error` if there is no device. Operators ask when they are made, before
  /// they plan.
  static void require(std::int64_t, std::int64_t) { Device::require(name(), {80, 0}); }

  /// See `planned_kernel`.
  template <class Memory>
  using planned = detail::device_cudnn_plan<T, Engine, Device, Memory>;
};

}  // namespace orrery
