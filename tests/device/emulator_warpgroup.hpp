// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <source_location>
#include <string>
#include <type_traits>

#include "orrery/device/context.hpp"
#include "orrery/device/limits.hpp"
#include "orrery/device/tensor_map.hpp"

#include "device/emulator.hpp"
#include "device/emulator_async.hpp"

/// What the emulated device has of compute capability 9.0. Beyond what `emulator.hpp` says, it throws `misuse` for:
///
/// - copies to, and writes over, what other copies or products still use, or have used without the writer having waited
///   for it, by mbarriers or otherwise; products of what has not arrived, or that some thread has not waited for;
/// - what threads wrote and the asynchronous proxy uses without `fence_async_proxy`;
/// - sums and left operands of products that are used, or changed, before these are waited for, and products without
///   `fence_products`;
/// - matrix descriptors with fields that do not fit the matrix; too many arrivals; barriers, copies and products that
///   are left over at the end.
namespace emulator {

/// What a thread can do; see `orrery::gpu_warpgroup_threads`.
class warpgroup_threads : public threads {
 public:
  warpgroup_threads(class block& own, int index, async_engine& engine) : threads{own, index}, engine_{&engine} {}

  [[nodiscard]] static unsigned address(int offset) { return shared_window + static_cast<unsigned>(offset); }
  [[nodiscard]] int uniform(int value, const place& here = place::current()) const {
    int own = value;
    block_->collective(index_, "uniform", &own, here, [](void* const* brought) {
      for (int lane = 1; lane < 32; ++lane) *static_cast<int*>(brought[lane]) = *static_cast<int*>(brought[0]);
    });
    return own;
  }

  void mbarrier_init(int mbarrier, int arrivals, const place& here = place::current()) const {
    engine_->mbarrier_init(index_, mbarrier, arrivals, here);
  }
  void mbarrier_arrive(int mbarrier, const place& here = place::current()) const {
    engine_->mbarrier_arrive(index_, mbarrier, 0, here);
  }
  void mbarrier_arrive_expecting(int mbarrier, int bytes, const place& here = place::current()) const {
    engine_->mbarrier_arrive(index_, mbarrier, bytes, here);
  }
  void mbarrier_wait(int mbarrier, int parity, const place& here = place::current()) const {
    engine_->mbarrier_wait(index_, mbarrier, parity, here);
  }

  void named_barrier_sync(int number, int count, const place& here = place::current()) const {
    engine_->named_barrier(index_, number, count, true, here);
  }
  void named_barrier_arrive(int number, int count, const place& here = place::current()) const {
    engine_->named_barrier(index_, number, count, false, here);
  }

  void fence_async_proxy() const { engine_->fence(index_); }
  void copy_tensor(int to, const orrery::detail::tensor_map& map, const int (&coordinates)[4], int mbarrier,
                   const place& here = place::current()) const {
    engine_->copy_tensor(index_, to, map, coordinates, mbarrier, here);
  }

  void fence_products(const place& here = place::current()) const {
    together("fence_products", here, [&] { engine_->products().fence_products(index_); });
  }
  void commit_products(const place& here = place::current()) const {
    together("commit_products", here, [&] { engine_->products().commit_products(index_); });
  }
  template <int pending>
  void wait_for_products(const place& here = place::current()) const {
    together("wait_for_products", here, [&] { engine_->products().wait_for_products(index_, pending, here); });
  }
  template <std::size_t column_tiles>
  void hold(float (&sums)[column_tiles][4], const place& here = place::current()) const {
    engine_->products().require_finished(index_, sums[0], 4 * column_tiles, here);
  }
  template <std::size_t steps>
  void hold(std::uint32_t (&operands)[steps][4], const place& here = place::current()) const {
    engine_->products().require_finished(index_, operands[0], 4 * steps, here);
  }
  template <std::size_t column_tiles>
  void discard(float (&sums)[column_tiles][4], const place& here = place::current()) const {
    hold(sums, here);
    std::fill_n(sums[0], 4 * column_tiles, std::numeric_limits<float>::quiet_NaN());
  }

  template <class T, std::size_t column_tiles>
  void multiply(float (&sums)[column_tiles][4], std::uint64_t a, std::uint64_t b, bool accumulates,
                const place& here = place::current()) const {
    begin_product<T>({sums[0], nullptr, a, b, accumulates}, static_cast<int>(8 * column_tiles), here);
  }
  using threads::multiply_add;
  template <class T, int first, int count, std::size_t column_tiles>
  void multiply_add(float (&sums)[column_tiles][4], const std::uint32_t (&a)[4], std::uint64_t b,
                    const place& here = place::current()) const {
    static_assert(first + count <= static_cast<int>(column_tiles));
    begin_product<T>({sums[first], a, 0, b, true}, 8 * count, here);
  }

  template <int count>
  void give_registers_back(const place& here = place::current()) const {
    together("give_registers_back", here, [&] { engine_->set_registers(index_, count, false, here); });
  }
  template <int count>
  void take_registers(const place& here = place::current()) const {
    together("take_registers", here, [&] { engine_->set_registers(index_, count, true, here); });
  }

 private:
  template <class Work>
  void together(const char* what, const place& here, const Work& work) const {
    block_->warpgroup_collective(index_, what, nullptr, here, [&](void* const*) { work(); });
  }
  template <class T>
  void begin_product(warpgroup_products::share own, int columns, const place& here) const {
    block_->warpgroup_collective(index_, "a product", &own, here, [&](void* const* brought) {
      engine_->products().begin_product(
          brought, index_ / 128 * 128, columns, [](std::uint16_t bits) { return static_cast<float>(T::of_bits(bits)); },
          here);
      ++counted.products;
    });
  }

  async_engine* engine_;
};

/// The `Device` of kernels that are to run here by warpgroups, in the call.
struct warpgroup_device : device {
  [[nodiscard]] static orrery::detail::device_limits limits() { return device::limits; }
  [[nodiscard]] static bool has_warpgroups(int shared_bytes) {
    return device::limits.compute_capability == 90 && device::limits.shared_bytes >= shared_bytes;
  }
  [[nodiscard]] static orrery::detail::tensor_map map(const orrery::detail::tensor_box& box) {
    return encoded_box::encode(box);
  }

  template <int count, class Body>
  static void launch_warpgroups(const orrery::device_context&, std::int64_t blocks, int shared_bytes,
                                const Body& body) {
    static_assert(count % 128 == 0 && count <= 1024);
    static_assert(std::is_trivially_copyable_v<Body> && sizeof(Body) <= 4096, "a launch's arguments are copied");
    if (blocks == 0) return;
    orrery::detail::device_limits::require_grid(blocks);
    static thread_local block all{count};
    all.give_shared_memory(shared_bytes);
    async_engine engine{all};
    for (std::int64_t i = 0; i < blocks; ++i) {
      engine.begin();
      all.run(
          i,
          [&](int thread) {
            body(warpgroup_threads{all, thread, engine});
          },
          &engine);
      engine.end();
    }
    counted.blocks += blocks;
  }
};

}  // namespace emulator
