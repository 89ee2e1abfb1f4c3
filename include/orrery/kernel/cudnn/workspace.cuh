// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "orrery/device/context.hpp"
#include "orrery/kernel/cuda/backend.cuh"
#include "orrery/kernel/cudnn/call.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What `device_cudnn` needs memory for: one call's results, its workspace, and the rank's own tensors where they do
/// not lie as plans expect.
enum class cudnn_region : std::size_t {
  out,
  lse,
  grad_q,
  grad_k,
  grad_v,
  workspace,
  own_q,
  own_k,
  own_v,
  own_grad_out,
  count
};

/// The memory of `device_cudnn`'s plan for an operator: regions as large as the largest that is put there.
template <class T, class Device, class Memory>
class device_cudnn_memory {
 public:
  /// Before `take`.
  void needs(cudnn_region which, std::int64_t elements, std::size_t size) {
    std::int64_t& known = sizes_[index(which)];
    known = (std::max)(known, elements * static_cast<std::int64_t>(size));
  }
  /// The rank's own q, k, v or grad_out will have these strides, if it lies as a trainer's.
  void expect_own(cudnn_region which, const tensor_view<const T>& view) {
    const std::int64_t heads = view.sequence_stride / view.dim;
    own_tensor& tensor = own_[own_index(which)];
    tensor.strides = cudnn_strides::of(view);
    tensor.here.resize(static_cast<std::size_t>(heads));
    // A chunk has the strides of the whole tensor.
    needs(which, (std::max)(view.batch * view.sequence * heads * view.dim, view.batch * view.batch_stride), sizeof(T));
  }
  [[nodiscard]] std::int64_t bytes() const noexcept {
    std::int64_t sum = 0;
    for (const std::int64_t size : sizes_) sum += aligned(size);
    return sum;
  }
  void take() { memory_ = Memory{bytes()}; }

  /// Nothing is known of what the rank's own tensors hold now.
  void begin() noexcept {
    for (own_tensor& one : own_) std::fill(one.here.begin(), one.here.end(), nullptr);
  }

  template <class U>
  [[nodiscard]] U* region(cudnn_region which) const {
    std::byte* at = memory_.data();
    for (std::size_t before = 0; before < index(which); ++before) at += aligned(sizes_[before]);
    return static_cast<U*>(static_cast<void*>(at));
  }
  /// A result that has a row for each of these, packed.
  [[nodiscard]] tensor_view<T> packed(cudnn_region which, const tensor_view<const T>& rows, std::int64_t dim) const {
    return batch_head_sequence_dim(region<T>(which), rows.batch, rows.heads, rows.sequence, dim);
  }
  [[nodiscard]] row_view<float> packed_rows(const tensor_view<const T>& rows) const {
    return batch_head_sequence(region<float>(cudnn_region::lse), rows.batch, rows.heads, rows.sequence);
  }

  /// Returns true if cuDNN can read or write the tensor itself, as a plan for these strides expects it.
  template <class U>
  [[nodiscard]] static bool fits(const tensor_view<U>& is, const cudnn_strides& as) noexcept {
    return reinterpret_cast<std::uintptr_t>(is.data) % 16 == 0 && (is.batch == 1 || is.batch_stride == as.batch) &&
           (is.heads == 1 || is.head_stride == as.head) && (is.sequence == 1 || is.sequence_stride == as.sequence);
  }
  /// The rank's own tensor as it was expected, `first_head` its first one of the trainer's: as it is, or the plan's
  /// copy, which is made once a call, or for each chunk where there are several in turn.
  [[nodiscard]] tensor_view<const T> as_planned(const device_context& context, cudnn_region which,
                                                const tensor_view<const T>& is, std::int64_t first_head) {
    own_tensor& tensor = own_[own_index(which)];
    const cudnn_strides& as = tensor.strides;
    const T* data = is.data;
    if (!fits(is, as)) {
      const tensor_view<T> copy = placed(is, region<T>(which) + first_head * as.head, as);
      const T*& here = tensor.here[static_cast<std::size_t>(first_head)];
      if (here != is.data) device_backend<Device>::copy(context, is, copy);
      here = is.data;
      data = copy.data;
    }
    return {data, is.batch, is.sequence, is.heads, is.dim, as.batch, as.sequence, as.head};
  }
  /// A tensor of the same sizes elsewhere.
  template <class U>
  [[nodiscard]] static tensor_view<T> placed(const tensor_view<U>& like, T* data, const cudnn_strides& as) noexcept {
    return {data, like.batch, like.sequence, like.heads, like.dim, as.batch, as.sequence, as.head};
  }

 private:
  /// The strides that calls are planned with, and, by first head, of which data the plan's copy is.
  struct own_tensor {
    cudnn_strides strides;
    std::vector<const T*> here;
  };

  static constexpr std::size_t index(cudnn_region which) noexcept { return static_cast<std::size_t>(which); }
  static constexpr std::size_t own_index(cudnn_region which) noexcept {
    return index(which) - index(cudnn_region::own_q);
  }
  static constexpr std::int64_t aligned(std::int64_t bytes) noexcept { return (bytes + 255) / 256 * 256; }

  std::array<std::int64_t, index(cudnn_region::count)> sizes_{};
  std::array<own_tensor, 4> own_;
  Memory memory_;
};

}  // namespace orrery::detail
