// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <type_traits>

namespace orrery {

/// A tensor of shape [batch, sequence, head, dim] in memory that somebody else owns: an address and three strides.
///
/// Strides are in elements and not negative; the elements of one head (`dim`) are contiguous. A stride of 0 repeats the
/// same elements: allowed for what is read only. Every layout that trainers use is one of these: see
/// `batch_sequence_head_dim`, `sequence_batch_head_dim`, `batch_head_sequence_dim` and `packed_qkv`. Copying a view
/// copies the address, never the data.
template <class T>
struct tensor_view {
  using element = T;

  T* data = nullptr;
  std::int64_t batch = 0;
  std::int64_t sequence = 0;
  std::int64_t heads = 0;
  std::int64_t dim = 0;
  std::int64_t batch_stride = 0;
  std::int64_t sequence_stride = 0;
  std::int64_t head_stride = 0;

  /// Address of the first element of one head of one token.
  [[nodiscard]] constexpr T* at(std::int64_t b, std::int64_t token, std::int64_t head) const noexcept {
    return data + b * batch_stride + token * sequence_stride + head * head_stride;
  }

  /// The heads [first, first + count) of the same tensor.
  [[nodiscard]] constexpr tensor_view slice_heads(std::int64_t first, std::int64_t count) const noexcept {
    tensor_view slice = *this;
    slice.data = data == nullptr ? nullptr : data + first * head_stride;
    slice.heads = count;
    return slice;
  }

  /// The tokens [first, first + count) of the same tensor.
  [[nodiscard]] constexpr tensor_view slice_tokens(std::int64_t first, std::int64_t count) const noexcept {
    tensor_view slice = *this;
    slice.data = data == nullptr ? nullptr : data + first * sequence_stride;
    slice.sequence = count;
    return slice;
  }

  [[nodiscard]] constexpr std::int64_t size() const noexcept { return batch * sequence * heads * dim; }

  template <class Const>
    requires(!std::is_const_v<T> && std::is_same_v<Const, const T>)
  // NOLINTNEXTLINE(google-explicit-constructor): a view of mutable data is a view of constant data
  constexpr operator tensor_view<Const>() const noexcept {
    return {data, batch, sequence, heads, dim, batch_stride, sequence_stride, head_stride};
  }
};

/// One number for each (batch, head, token): the log-sum-exp of a query's scores, or the backward's delta.
/// Strides are in elements and not negative. `batch_head_sequence` is the usual layout.
template <class T>
struct row_view {
  using element = T;

  T* data = nullptr;
  std::int64_t batch = 0;
  std::int64_t heads = 0;
  std::int64_t sequence = 0;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t sequence_stride = 0;

  [[nodiscard]] constexpr T* at(std::int64_t b, std::int64_t head, std::int64_t token) const noexcept {
    return data + b * batch_stride + head * head_stride + token * sequence_stride;
  }

  [[nodiscard]] constexpr row_view slice_heads(std::int64_t first, std::int64_t count) const noexcept {
    row_view slice = *this;
    slice.data = data == nullptr ? nullptr : data + first * head_stride;
    slice.heads = count;
    return slice;
  }

  /// The tokens [first, first + count) of the same rows.
  [[nodiscard]] constexpr row_view slice_tokens(std::int64_t first, std::int64_t count) const noexcept {
    row_view slice = *this;
    slice.data = data == nullptr ? nullptr : data + first * sequence_stride;
    slice.sequence = count;
    return slice;
  }

  [[nodiscard]] constexpr std::int64_t size() const noexcept { return batch * heads * sequence; }

  template <class Const>
    requires(!std::is_const_v<T> && std::is_same_v<Const, const T>)
  // NOLINTNEXTLINE(google-explicit-constructor): a view of mutable data is a view of constant data
  constexpr operator row_view<Const>() const noexcept {
    return {data, batch, heads, sequence, batch_stride, head_stride, sequence_stride};
  }
};

/// Contiguous memory in the order [batch, sequence, head, dim].
template <class T>
[[nodiscard]] constexpr tensor_view<T> batch_sequence_head_dim(T* data, std::int64_t batch, std::int64_t sequence,
                                                               std::int64_t heads, std::int64_t dim) noexcept {
  return {data, batch, sequence, heads, dim, sequence * heads * dim, heads * dim, dim};
}

/// Contiguous memory in the order [sequence, batch, head, dim].
template <class T>
[[nodiscard]] constexpr tensor_view<T> sequence_batch_head_dim(T* data, std::int64_t sequence, std::int64_t batch,
                                                               std::int64_t heads, std::int64_t dim) noexcept {
  return {data, batch, sequence, heads, dim, heads * dim, batch * heads * dim, dim};
}

/// Contiguous memory in the order [batch, head, sequence, dim].
template <class T>
[[nodiscard]] constexpr tensor_view<T> batch_head_sequence_dim(T* data, std::int64_t batch, std::int64_t heads,
                                                               std::int64_t sequence, std::int64_t dim) noexcept {
  return {data, batch, sequence, heads, dim, heads * sequence * dim, dim, sequence * dim};
}

/// Contiguous memory in the order [batch, head, sequence]: where log-sum-exp goes.
template <class T>
[[nodiscard]] constexpr row_view<T> batch_head_sequence(T* data, std::int64_t batch, std::int64_t heads,
                                                        std::int64_t sequence) noexcept {
  return {data, batch, heads, sequence, heads * sequence, sequence, 1};
}

/// Q, K and V as one projection leaves them: contiguous [batch, sequence, query heads + 2 key heads, dim].
template <class T>
struct packed_qkv {
  tensor_view<T> q;
  tensor_view<T> k;
  tensor_view<T> v;

  constexpr packed_qkv(T* data, std::int64_t batch, std::int64_t sequence, std::int64_t query_heads,
                       std::int64_t key_heads, std::int64_t dim) noexcept {
    const auto all = batch_sequence_head_dim(data, batch, sequence, query_heads + 2 * key_heads, dim);
    q = all.slice_heads(0, query_heads);
    k = all.slice_heads(query_heads, key_heads);
    v = all.slice_heads(query_heads + key_heads, key_heads);
  }
};

}  // namespace orrery
