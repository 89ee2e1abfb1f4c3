// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <orrery/kernel/cuda/backend.cuh>
#include <orrery/kernel/device_flash.cuh>
#include <orrery/kernel/device_reference.cuh>
#include <orrery/transport/device.hpp>

#include "matrix.hpp"

namespace train {

/// body(i) for each i from 0 to count - 1, each by a thread of a device.
template <class Body>
struct for_each_index {
  static constexpr int threads_of_block = 128;

  Body body;
  std::int64_t count;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const std::int64_t i = threads.block() * threads_of_block + threads.thread();
    if (i < count) body(i);
  }
};

/// Of an element of c: c += a * b. A textbook's loop, for matrices of an example's size.
template <class T>
struct product_element {
  matrix_view<T> c, a, b;

  ORRERY_DEVICE void operator()(std::int64_t i) const {
    const T* const x = a.row(i / c.columns);
    const T* const y = b.data + i % c.columns * b.column_stride;
    T sum = 0;
    for (std::int64_t k = 0; k < b.rows; ++k) sum += x[k * a.column_stride] * y[k * b.row_stride];
    c.row(i / c.columns)[i % c.columns * c.column_stride] += sum;
  }
};

template <class T>
struct fill_element {
  matrix_view<T> m;
  T value;

  ORRERY_DEVICE void operator()(std::int64_t i) const { m.row(i / m.columns)[i % m.columns * m.column_stride] = value; }
};

/// Where a rank's numbers are and are computed with (compare `on_host`): in a device's memory, by kernels on one
/// stream.
template <class Device>
class on_device {
 public:
  explicit on_device(cudaStream_t stream) : context_{stream} {}

  template <class T>
  class memory {
   public:
    memory(std::int64_t count, cudaStream_t stream) : bytes_{count * std::int64_t{sizeof(T)}} {
      if (count == 0) return;
      orrery::detail::check_cuda(
          cudaMemsetAsync(bytes_of_.data(), 0, static_cast<std::size_t>(count) * sizeof(T), stream), "cudaMemsetAsync");
    }
    [[nodiscard]] T* data() const { return reinterpret_cast<T*>(bytes_of_.data()); }

   private:
    std::int64_t bytes_;
    orrery::detail::device_memory bytes_of_{bytes_};
  };

  template <class T>
  [[nodiscard]] memory<T> zeros(std::int64_t count) const {
    return {count, context_.stream};
  }

  template <class Body>
  void each(std::int64_t count, const Body& body) const {
    constexpr int threads = for_each_index<Body>::threads_of_block;
    Device::template launch<threads>(context_, (count + threads - 1) / threads, 0, for_each_index<Body>{body, count});
  }
  template <class T>
  void fill(matrix_view<T> m, T value) const {
    each(m.size(), fill_element<T>{m, value});
  }
  template <class T>
  void multiply_add(matrix_view<T> c, matrix_view<T> a, matrix_view<T> b) const {
    each(c.size(), product_element<T>{c, a, b});
  }
  template <class From, class To>
  void convert(const orrery::tensor_view<From>& from, const orrery::tensor_view<To>& to) const {
    orrery::detail::device_backend<Device>::copy(context_, from, to);
  }

  template <class T>
  void bring(std::span<const T> from, T* to) const {
    copy(to, from.data(), from.size_bytes(), cudaMemcpyHostToDevice);
  }
  template <class T>
  void fetch(const T* from, std::span<T> to) const {
    copy(to.data(), from, to.size_bytes(), cudaMemcpyDeviceToHost);
  }

  /// Numbers of the host that the device works with: a copy of them.
  template <class T>
  class mirror {
   public:
    mirror(const on_device& place, std::span<T> of_host)
        : place_{place}, of_host_{of_host}, copy_{place.zeros<T>(static_cast<std::int64_t>(of_host.size()))} {}

    [[nodiscard]] T* data() const { return copy_.data(); }
    void bring() const { place_.bring(std::span<const T>{of_host_}, data()); }
    void fetch() const { place_.fetch(data(), of_host_); }
    void clear() const { place_.fill(matrix_view<T>{data(), 1, static_cast<std::int64_t>(of_host_.size())}, T{0}); }

   private:
    on_device place_;
    std::span<T> of_host_;
    memory<T> copy_;
  };

 private:
  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
    if (bytes == 0) return;
    orrery::detail::check_cuda(cudaMemcpyAsync(to, from, bytes, kind, context_.stream), "cudaMemcpyAsync");
    orrery::detail::check_cuda(cudaStreamSynchronize(context_.stream), "cudaStreamSynchronize");
  }

  orrery::device_context context_;
};

/// Ranks that are streams of CUDA devices.
template <class Device>
struct device_ranks {
  template <class S>
  using kernel = std::conditional_t<std::is_floating_point_v<S>, orrery::device_reference<S, Device>,
                                    orrery::device_flash<S, 64, Device>>;

  template <class Body>
  static void run(int ranks, const Body& body) {
    orrery::device::run(ranks, body);
  }
  template <class World>
  static bool reports(const World& world) {
    return world.rank() == 0;
  }
  static on_device<Device> place(const orrery::device::world& world) { return on_device<Device>{world.stream()}; }
};

}  // namespace train
