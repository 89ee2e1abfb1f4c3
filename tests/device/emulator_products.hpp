// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

#include "device/emulator_block.hpp"

namespace emulator {

/// Where a block's shared memory begins in the window that addresses are of.
inline constexpr unsigned shared_window = 1024;

/// The swizzle of 128 bytes: bits 4 to 6 of an address are changed by bits 7 to 9.
[[nodiscard]] constexpr unsigned swizzled(unsigned address) { return address ^ (address >> 7 & 7u) << 4; }

/// Until when what each thread wrote is there for the asynchronous proxy.
class proxy_fences {
 public:
  void begin(int threads) { until_.assign(static_cast<std::size_t>(threads), 0); }
  void fence(int thread, clocks& order) { until_[static_cast<std::size_t>(thread)] = order.tick(thread); }
  [[nodiscard]] bool covers(int thread, std::uint32_t time) const {
    return until_[static_cast<std::size_t>(thread)] >= time;
  }
  /// What is in a cell was not written by a thread without a fence.
  void require(const block& own, int thread, const block::cell& c, const std::source_location& place) const {
    if (c.writer >= 0 && c.writer < own.threads() && !covers(c.writer, c.write_epoch)) {
      own.fail(thread,
               "lets the asynchronous proxy use what thread " + std::to_string(c.writer) +
                   " wrote without fence_async_proxy",
               place);
    }
  }

 private:
  std::vector<std::uint32_t> until_;
};

/// The products of a block's warpgroups, see section "Asynchronous Warpgroup Level Matrix Multiply-Accumulate
/// Instructions" of the PTX ISA. They happen when they are waited for; until then their sums hold NaN.
class warpgroup_products {
 public:
  using place = std::source_location;

  warpgroup_products(class block& own, const proxy_fences& fences) : block_{&own}, fences_{&fences} {}

  void begin() {
    groups_.assign(static_cast<std::size_t>(block_->threads()) / 128, {});
    sums_.clear();
    reads_.clear();
  }
  /// Is there a product that nobody has waited for?
  [[nodiscard]] bool are_left() const {
    return std::any_of(groups_.begin(), groups_.end(),
                       [](const warpgroup& one) { return !one.begun.empty() || !one.committed.empty(); });
  }

  /// Memory that `thread` is about to overwrite is read by no product, and it knows that of those that did.
  void before_write(int thread, int offset, int bytes, const place& here) {
    const range written{offset, offset + bytes};
    const auto unfinished = [&](const std::vector<product>& all) {
      for (const product& one : all) {
        for (const range& read : one.reads) {
          if (read.meets(written)) {
            block_->fail(thread, "overwrites shared memory that an unfinished product reads", here);
          }
        }
      }
    };
    for (const warpgroup& one : groups_) {
      unfinished(one.begun);
      for (const auto& group : one.committed) unfinished(group);
    }
    std::erase_if(reads_, [&](finished_read& one) {
      if (!one.read.meets(written)) return false;
      if (!block_->order().knows(thread, one.thread, one.time)) {
        block_->fail(
            thread,
            "overwrites what products of thread " + std::to_string(one.thread) + "'s warp read, without a barrier",
            here);
      }
      if (written.first <= one.read.first) one.read.first = (std::min)(written.end, one.read.end);
      if (written.end >= one.read.end) one.read.end = (std::max)(written.first, one.read.first);
      return one.read.first == one.read.end;
    });
  }

  /// What one thread brings to a product.
  struct share {
    float* sums;
    const std::uint32_t* a_words;  ///< null: a is in shared memory
    std::uint64_t a;
    std::uint64_t b;
    bool accumulates;
  };

  void fence_products(int thread) { groups_[group_of(thread)].fenced = true; }

  void begin_product(void* const* brought, int first, int columns, float (*number)(std::uint16_t), const place& here) {
    const auto of = [&](int i) -> const share& { return *static_cast<const share*>(brought[i]); };
    warpgroup& own = groups_[group_of(first)];
    if (!own.fenced) block_->fail(first, "begins products without fence_products since it waited for some", here);
    product one{};
    one.columns = columns;
    one.number = number;
    one.what = of(0);
    for (int i = 0; i < 128; ++i) {
      if (of(i).a != one.what.a || of(i).b != one.what.b || of(i).accumulates != one.what.accumulates) {
        block_->fail(first + i, "begins another product than its warpgroup", here);
      }
      one.sums[static_cast<std::size_t>(i)] = of(i).sums;
      if (of(i).a_words != nullptr) {
        one.a_at[static_cast<std::size_t>(i)] = of(i).a_words;
        std::copy_n(of(i).a_words, 4, one.a_words[static_cast<std::size_t>(i)].begin());
      }
    }
    if (one.what.a_words == nullptr) {
      require_readable(one, matrix{one.what.a, false}, 64, first, here);
    }
    require_readable(one, matrix{one.what.b, one.what.a_words != nullptr}, columns, first, here);
    for (float* const sums : one.sums) {
      auto [found, is_new] = sums_.try_emplace(sums);
      if (is_new) {
        found->second.values.assign(sums, sums + columns / 2);
        std::fill_n(sums, columns / 2, unfinished());
      } else if (found->second.values.size() != static_cast<std::size_t>(columns / 2)) {
        block_->fail(first, "begins a product of another shape with sums that are not finished", here);
      }
      ++found->second.products;
    }
    own.begun.push_back(std::move(one));
  }

  void commit_products(int thread) {
    warpgroup& own = groups_[group_of(thread)];
    own.committed.push_back(std::move(own.begun));
    own.begun.clear();
  }

  void wait_for_products(int thread, int pending, const place& here) {
    warpgroup& own = groups_[group_of(thread)];
    while (own.committed.size() > static_cast<std::size_t>(pending)) {
      const std::vector<product> group = std::move(own.committed.front());
      own.committed.erase(own.committed.begin());
      const int first = thread / 128 * 128;
      for (const product& one : group) {
        finish(one, first, here);
        for (const range& read : one.reads) remember(read, first);
      }
    }
    own.fenced = false;
  }

  /// No product that is not finished has these as sums, or as words of its left operand.
  void require_finished(int thread, const float* sums, std::size_t count, const place& here) const {
    const auto from = sums_.lower_bound(const_cast<float*>(sums));
    if (from != sums_.end() && from->first < sums + count) {
      block_->fail(thread, "uses sums of a product that it has not waited for", here);
    }
  }
  void require_finished(int thread, const std::uint32_t* words, std::size_t count, const place& here) const {
    const auto check = [&](const std::vector<product>& all) {
      for (const product& one : all) {
        const std::uint32_t* const at = one.a_at[static_cast<std::size_t>(thread % 128)];
        if (at != nullptr && at >= words && at < words + count) {
          block_->fail(thread, "uses the left operand of a product that it has not waited for", here);
        }
      }
    };
    const warpgroup& own = groups_[group_of(thread)];
    check(own.begun);
    for (const auto& group : own.committed) check(group);
  }

 private:
  struct range {
    int first, end;
    [[nodiscard]] bool meets(const range& other) const { return first < other.end && other.first < end; }
  };
  struct finished_read {
    range read;
    int thread;
    std::uint32_t time;
  };
  struct product {
    int columns;
    float (*number)(std::uint16_t);
    share what;
    std::array<float*, 128> sums;
    std::array<const std::uint32_t*, 128> a_at;
    std::array<std::array<std::uint32_t, 4>, 128> a_words;
    std::vector<range> reads;
  };
  struct warpgroup {
    bool fenced = false;
    std::vector<product> begun;
    std::vector<std::vector<product>> committed;
  };
  struct unfinished_sums {
    std::vector<float> values;
    int products = 0;
  };

  /// A matrix descriptor, field by field; of a matrix whose rows are along the left operand's rows or the columns of
  /// the product.
  struct matrix {
    std::uint64_t bits;
    bool rows_are_contiguous;  ///< "MN-major"

    [[nodiscard]] unsigned field(int shift) const { return static_cast<unsigned>(bits >> shift & 0x3fffu) << 4; }
    [[nodiscard]] const char* fault() const {
      constexpr std::uint64_t fields = 0xc000'0000'0000'0000 | 0x3fffull << 32 | 0x3fffull << 16 | 0x3fffull;
      if (bits >> 62 != 1) return "a matrix descriptor has not the swizzle of 128 bytes";
      if ((bits & ~fields) != 0) return "a matrix descriptor has bits where there are no fields, or a base offset";
      if (field(0) / 128 % 8 != 0) return "a matrix does not begin where the pattern of its swizzle does";
      if (!rows_are_contiguous && field(0) % 128 > 96) return "a matrix leaves its rows of 128 bytes";
      return nullptr;
    }
    [[nodiscard]] unsigned address(unsigned row, unsigned k) const {
      const unsigned leading = field(16), stride = field(32);
      return swizzled(field(0) + (rows_are_contiguous ? row / 64 * leading + row % 64 * 2 + k / 8 * stride + k % 8 * 128
                                                      : row / 8 * stride + row % 8 * 128 + k * 2));
    }
  };

  [[nodiscard]] static std::size_t group_of(int thread) { return static_cast<std::size_t>(thread / 128); }
  [[nodiscard]] static float unfinished() {
    const std::uint32_t bits = 0x7fc0beef;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  [[nodiscard]] static bool is_unfinished(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits == 0x7fc0beef;
  }

  /// All of the matrix is there, and all of the warpgroup's threads know it.
  void require_readable(product& one, const matrix& from, int rows, int first, const place& here) const {
    if (const char* fault = from.fault()) block_->fail(first, fault, here);
    range read{block_->shared_bytes(), 0};
    int known = -1;
    std::uint32_t known_time = 0;
    for (unsigned row = 0; row < static_cast<unsigned>(rows); ++row) {
      for (unsigned k = 0; k < 16; ++k) {
        const int offset = static_cast<int>(from.address(row, k)) - static_cast<int>(shared_window);
        if (offset < 0 || offset + 2 > block_->shared_bytes()) block_->fail(first, "a matrix is out of bounds", here);
        const block::cell& c = block_->cell_at(offset);
        if (c.state == block::cell::poison) block_->fail(first, "multiplies memory that nobody has written", here);
        if (c.state != block::cell::valid) block_->fail(first, "multiplies memory that is being copied to", here);
        if (c.writer != known || c.write_epoch > known_time) {
          for (int thread = first; thread < first + 128; ++thread) {
            if (!block_->order().knows(thread, c.writer, c.write_epoch)) {
              block_->fail(thread, "multiplies memory without having waited for who wrote it", here);
            }
          }
          fences_->require(*block_, first, c, here);
          known = c.writer;
          known_time = c.write_epoch;
        }
        read = {(std::min)(read.first, offset), (std::max)(read.end, offset + 2)};
      }
    }
    one.reads.push_back(read);
  }

  [[nodiscard]] float element(const product& one, const matrix& from, int row, int k) const {
    std::uint16_t bits;
    std::memcpy(&bits,
                block_->memory_at(static_cast<int>(from.address(static_cast<unsigned>(row), static_cast<unsigned>(k))) -
                                  static_cast<int>(shared_window)),
                2);
    return one.number(bits);
  }

  void finish(const product& one, int first, const place& here) {
    static thread_local float a[64][16], b[16][256];
    const bool by_registers = one.what.a_words != nullptr;
    const matrix of_b{one.what.b, by_registers};
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < one.columns; ++column) b[k][column] = element(one, of_b, column, k);
    }
    for (int thread = 0; thread < 128; ++thread) {
      const auto t = static_cast<std::size_t>(thread);
      if (!by_registers) {
        for (int i = 0; i < 8; ++i)
          a[thread / 2][thread % 2 * 8 + i] = element(one, {one.what.a, false}, thread / 2, thread % 2 * 8 + i);
        continue;
      }
      const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
      for (int i = 0; i < 4; ++i) {
        if (one.a_at[t][i] != one.a_words[t][static_cast<std::size_t>(i)]) {
          block_->fail(first + thread, "has changed the left operand of a product that it had not waited for", here);
        }
        for (int high = 0; high < 2; ++high) {
          a[row + i % 2 * 8][column + i / 2 * 8 + high] =
              one.number(static_cast<std::uint16_t>(one.a_at[t][i] >> (16 * high)));
        }
      }
    }
    for (int row = 0; row < 64; ++row) {
      float sums[256] = {};
      const auto of = [&](int column) -> float& {
        // Section "Matrix Fragments for wgmma.mma_async.m64nNk16", the figure of matrix D.
        const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
        return sums_.find(one.sums[static_cast<std::size_t>(thread)])
            ->second.values[static_cast<std::size_t>(column / 8 * 4 + row % 16 / 8 * 2 + column % 2)];
      };
      if (one.what.accumulates) {
        for (int column = 0; column < one.columns; ++column) sums[column] = of(column);
      }
      for (int k = 0; k < 16; ++k) {
        const float factor = a[row][k];
        for (int column = 0; column < one.columns; ++column) sums[column] += factor * b[k][column];
      }
      for (int column = 0; column < one.columns; ++column) of(column) = sums[column];
    }
    for (float* const sums : one.sums) {
      const auto found = sums_.find(sums);
      if (--found->second.products > 0) continue;
      const std::vector<float>& values = found->second.values;
      if (!std::all_of(sums, sums + values.size(), is_unfinished)) {
        block_->fail(first, "has written to sums of a product that it had not waited for", here);
      }
      std::copy(values.begin(), values.end(), sums);
      sums_.erase(found);
    }
  }

  /// The four warps have read this when they go on.
  void remember(const range& read, int first) {
    for (int thread = first; thread < first + 128; thread += 32) {
      const std::uint32_t now = block_->order().now(thread);
      const auto same = std::find_if(reads_.begin(), reads_.end(), [&](const finished_read& one) {
        return one.thread == thread && one.time == now && one.read.first <= read.end && read.first <= one.read.end;
      });
      if (same == reads_.end()) {
        reads_.push_back({read, thread, now});
      } else {
        same->read = {(std::min)(same->read.first, read.first), (std::max)(same->read.end, read.end)};
      }
    }
  }

  class block* block_;
  const proxy_fences* fences_;
  std::vector<warpgroup> groups_;
  std::map<float*, unfinished_sums> sums_;
  std::vector<finished_read> reads_;
};

}  // namespace emulator
