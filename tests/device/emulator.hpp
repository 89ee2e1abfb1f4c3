// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>
#include <type_traits>

#include "orrery/device/code.hpp"
#include "orrery/device/context.hpp"
#include "orrery/device/limits.hpp"

#include "device/emulator_block.hpp"

/// A device on the host, for the tests of kernels: the threads of a block run in turn on one processor thread, and what
/// they may do together is done as PTX says, with the layouts of its fragments.
///
/// It is stricter than a GPU. It throws `misuse`, a message, for: shared memory that is read before it is written,
/// while it is being copied to, out of bounds or misaligned; accesses of two threads, one of them a write, without a
/// barrier between them; collectives that some threads of a warp or a block do not reach, or reach at different places;
/// vectors in global memory that are misaligned; copies whose arrival nobody waits for. What it can do of compute
/// capability 9.0 is in `emulator_warpgroup.hpp`.
namespace emulator {

/// What a launch counts, for tests that care.
struct counts {
  std::int64_t blocks = 0;
  std::int64_t matrix_loads = 0;     ///< of 8 rows of 16 bytes
  std::int64_t matrix_replays = 0;   ///< additional accesses because two of those rows share a bank
  std::int64_t multiplications = 0;  ///< warp-wide m16n8k16
  std::int64_t products = 0;         ///< of a warpgroup
  std::int64_t pairs = 0;            ///< of floats in global memory, read or written at once
};
inline counts counted;

/// What a thread can do; see `orrery::gpu_threads`.
class threads {
 public:
  using place = std::source_location;

  threads(class block& own, int index) : block_{&own}, index_{index} {}

  [[nodiscard]] std::int64_t block() const { return block_->index(); }
  [[nodiscard]] int thread() const { return index_; }
  [[nodiscard]] int warp() const { return index_ / 32; }
  [[nodiscard]] int lane() const { return index_ % 32; }

  void barrier(const place& here = place::current()) const { block_->barrier(index_, here); }

  void converge(const place& here = place::current()) const { block_->converge(index_, here); }

  template <class T>
  [[nodiscard]] T load(int offset, const place& here = place::current()) const {
    return block_->load<T>(index_, offset, here);
  }
  template <class T>
  void store(int offset, const T& value, const place& here = place::current()) const {
    block_->store(index_, offset, value, here);
  }

  [[nodiscard]] orrery::detail::vector_words read_vector(const void* from, const place& here = place::current()) const {
    block_->require_aligned(from, 16, index_, here);
    orrery::detail::vector_words v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  void write_vector(void* to, const orrery::detail::vector_words& v, const place& here = place::current()) const {
    block_->require_aligned(to, 16, index_, here);
    std::memcpy(to, &v, sizeof v);
  }

  [[nodiscard]] orrery::detail::float_pair read_pair(const float* from, const place& here = place::current()) const {
    block_->require_aligned(from, 8, index_, here);
    ++counted.pairs;
    return {{from[0], from[1]}};
  }
  void write_pair(float* to, const orrery::detail::float_pair& v, const place& here = place::current()) const {
    block_->require_aligned(to, 8, index_, here);
    ++counted.pairs;
    to[0] = v.of[0];
    to[1] = v.of[1];
  }

  void copy_async(int offset, const void* from, bool present, const place& here = place::current()) const {
    block_->copy_async(index_, offset, from, 16, present, here);
  }
  void copy_word_async(int offset, const void* from, bool present, const place& here = place::current()) const {
    block_->copy_async(index_, offset, from, 4, present, here);
  }
  void commit_copies() const { block_->commit_copies(index_); }
  template <int pending>
  void wait_for_copies() const {
    block_->wait_for_copies(index_, pending);
  }

  template <class T>
  [[nodiscard]] T shuffle_xor(T value, int mask, const place& here = place::current()) const {
    struct exchange {
      T value;
      int mask;
      T result;
    } own{value, mask, T{}};
    block_->collective(index_, "shuffle_xor", &own, here, [](void* const* brought) {
      for (int lane = 0; lane < 32; ++lane) {
        auto* const one = static_cast<exchange*>(brought[lane]);
        one->result = static_cast<exchange*>(brought[lane ^ one->mask])->value;
      }
    });
    return own.result;
  }

  [[nodiscard]] bool any(bool own, const place& here = place::current()) const {
    bool all = own;
    block_->collective(index_, "any", &all, here, [](void* const* brought) {
      bool found = false;
      for (int lane = 0; lane < 32; ++lane) found = found || *static_cast<const bool*>(brought[lane]);
      for (int lane = 0; lane < 32; ++lane) *static_cast<bool*>(brought[lane]) = found;
    });
    return all;
  }

  void load_matrices(std::uint32_t (&words)[4], int offset, const place& here = place::current()) const {
    load_matrices(words, offset, false, here);
  }
  void load_transposed(std::uint32_t (&words)[4], int offset, const place& here = place::current()) const {
    load_matrices(words, offset, true, here);
  }

  template <class T>
  void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                    const place& here = place::current()) const {
    struct fragments {
      float* sum;
      const std::uint32_t* a;
      std::uint32_t b[2];
    } own{sum, a, {b0, b1}};
    block_->collective(index_, "multiply_add", &own, here, [](void* const* brought) {
      const auto of = [&](int lane) { return static_cast<const fragments*>(brought[lane]); };
      float a_of[16][16], b_of[16][8];
      for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int high = 0; high < 2; ++high) {
          for (int i = 0; i < 4; ++i) a_of[group + i % 2 * 8][pair + i / 2 * 8 + high] = half<T>(of(lane)->a[i], high);
          for (int i = 0; i < 2; ++i) b_of[pair + i * 8 + high][group] = half<T>(of(lane)->b[i], high);
        }
      }
      float sums[16][8];
      const auto sum_of = [&](int row, int column) -> float& {
        return of(row % 8 * 4 + column / 2)->sum[row / 8 * 2 + column % 2];
      };
      for (int row = 0; row < 16; ++row) {
        for (int column = 0; column < 8; ++column) sums[row][column] = sum_of(row, column);
        for (int k = 0; k < 16; ++k) {
          for (int column = 0; column < 8; ++column) sums[row][column] += a_of[row][k] * b_of[k][column];
        }
        for (int column = 0; column < 8; ++column) sum_of(row, column) = sums[row][column];
      }
      ++counted.multiplications;
    });
  }

  template <class T>
  [[nodiscard]] std::uint32_t pack(float low, float high) const {
    return std::uint32_t{T{low}.bits} | std::uint32_t{T{high}.bits} << 16;
  }
  [[nodiscard]] float exp2(float x) const { return std::exp2(x); }

 protected:
  template <class T>
  static float half(std::uint32_t word, int high) {
    return static_cast<float>(T::of_bits(static_cast<std::uint16_t>(word >> (16 * high))));
  }

 private:
  void load_matrices(std::uint32_t (&words)[4], int offset, bool transposed, const place& here) const {
    struct request {
      orrery::detail::vector_words row;
      int offset;
      std::uint32_t* words;
    } own{block_->load<orrery::detail::vector_words>(index_, offset, here), offset, words};
    block_->collective(index_, "load_matrices", &own, here, [transposed](void* const* brought) {
      const auto of = [&](int lane) { return static_cast<const request*>(brought[lane]); };
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::array<int, 8> banks{};
        for (int row = 0; row < 8; ++row) ++banks[static_cast<std::size_t>(of(8 * matrix + row)->offset / 16 % 8)];
        counted.matrix_replays += *std::max_element(banks.begin(), banks.end()) - 1;
        ++counted.matrix_loads;
        const auto element = [&](int row, int column) {
          return of(8 * matrix + row)->row.word[column / 2] >> (column % 2 * 16) & 0xffffu;
        };
        for (int lane = 0; lane < 32; ++lane) {
          const int group = lane / 4, pair = lane % 4 * 2;
          const std::uint32_t low = transposed ? element(pair, group) : element(group, pair);
          const std::uint32_t high = transposed ? element(pair + 1, group) : element(group, pair + 1);
          of(lane)->words[matrix] = low | high << 16;
        }
      }
    });
  }

 protected:
  class block* block_;
  int index_;
};

/// Runs body(threads) for each thread of each block.
template <int count, class Body>
void run_grid(std::int64_t blocks, int shared_bytes, const Body& body) {
  static_assert(count % 32 == 0 && count <= 1024);
  static_assert(std::is_trivially_copyable_v<Body> && sizeof(Body) <= 4096, "a launch's arguments are copied");
  if (blocks == 0) return;
  orrery::detail::device_limits::require_grid(blocks);
  static thread_local block all{count};
  all.give_shared_memory(shared_bytes);
  for (std::int64_t i = 0; i < blocks; ++i) {
    all.run(i, [&](int thread) { body(threads{all, thread}); });
  }
  counted.blocks += blocks;
}

/// The `Device` of kernels that are to run here, in the call.
struct device {
  /// What it pretends to be.
  static inline orrery::detail::device_limits limits{0, 90, 227 * 1024};

  static void require(const std::string& kernel, const orrery::detail::device_needs& needs) {
    limits.require(kernel, needs);
  }

  template <int threads, class Body>
  static void launch(const orrery::device_context&, std::int64_t blocks, int shared_bytes, const Body& body) {
    run_grid<threads>(blocks, shared_bytes, body);
  }
};

}  // namespace emulator
