// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/device/tensor_map.hpp"

#include "device/emulator_block.hpp"
#include "device/emulator_products.hpp"

namespace emulator {

/// What this device writes into a tensor map.
struct encoded_box {
  static constexpr std::uint64_t mark = 0x6f72726572792121;
  std::uint64_t marked;
  const void* data;
  std::int64_t extent[4];
  std::int64_t stride_bytes[3];
  int rows;

  [[nodiscard]] static orrery::detail::tensor_map encode(const orrery::detail::tensor_box& box) {
    orrery::detail::tensor_map map;
    if (box.is_empty()) return map;
    if (!box.has_map() || box.rows < 1 || box.rows > 256) throw std::invalid_argument{"this box has no tensor map"};
    encoded_box code{mark, box.data, {}, {}, box.rows};
    std::copy_n(box.extent, 4, code.extent);
    std::copy_n(box.stride_bytes, 3, code.stride_bytes);
    static_assert(sizeof code <= sizeof map);
    std::memcpy(map.words, &code, sizeof code);
    return map;
  }
};

/// What goes on in a block beside its threads, and by what they wait for it and for each other: mbarriers, named
/// barriers, tensor copies and products, each as the section of the PTX ISA says that `orrery::gpu_warpgroup_threads`
/// names. Copies arrive, in a random order, when no thread can go on without them.
class async_engine final : public asynchronous_work {
 public:
  using place = std::source_location;

  explicit async_engine(class block& own) : block_{&own}, products_{own, fences_} {}
  async_engine(const async_engine&) = delete;

  void begin() {
    const auto count = static_cast<std::size_t>(block_->threads());
    mbarriers_.clear();
    copies_.clear();
    named_.fill({});
    fences_.begin(block_->threads());
    products_.begin();
    registers_.assign(count / 128, launch_registers());
  }
  /// Nothing is left when all threads have ended.
  void end() const {
    const auto leave = [&](const std::string& what) {
      throw misuse{"block " + std::to_string(block_->index()) + " ends while " + what};
    };
    if (!copies_.empty()) leave("tensor copies are on their way");
    for (const mbarrier& one : mbarriers_) {
      if (one.bytes != 0) leave("an mbarrier expects bytes that nothing copies");
    }
    for (const named_state& one : named_) {
      if (one.arrived != 0) leave("threads of a named barrier are missing");
    }
    if (products_.are_left()) leave("products are on their way");
    // More than the block was launched with there never are, and who asks for them waits for ever.
    const int registers = std::accumulate(registers_.begin(), registers_.end(), 0);
    const int launched = launch_registers() * static_cast<int>(registers_.size());
    if (registers > launched) {
      leave("its warpgroups ask for " + std::to_string(registers) + " registers, of " + std::to_string(launched));
    }
  }

  // ---- mbarriers

  void mbarrier_init(int thread, int offset, int arrivals, const place& here) {
    for (const mbarrier& one : mbarriers_) {
      if (one.offset == offset) block_->fail(thread, "initialises an mbarrier twice", here);
    }
    if (arrivals < 1) block_->fail(thread, "initialises an mbarrier for no arrivals", here);
    block_->store(thread, offset, std::uint64_t{0}, here);
    for (int i = 0; i < 8; i += 2) block_->cell_at(offset + i).state = block::cell::mbarrier;
    mbarriers_.push_back({offset, block_->order().add(), arrivals, arrivals, thread, block_->order().now(thread)});
  }
  void mbarrier_arrive(int thread, int offset, int bytes, const place& here) {
    mbarrier& one = at(thread, offset, here);
    if (one.pending == 0) block_->fail(thread, "arrives more often than the mbarrier was initialised for", here);
    one.bytes += bytes;
    block_->order().tell(thread, one.arriving);
    --one.pending;
    end_phase(one);
  }
  void mbarrier_wait(int thread, int offset, int parity, const place& here) {
    const auto which = static_cast<std::size_t>(&at(thread, offset, here) - mbarriers_.data());
    if (parity != 0 && parity != 1) block_->fail(thread, "waits for a parity that is neither 0 nor 1", here);
    while ((mbarriers_[which].phase & 1u) == static_cast<unsigned>(parity)) {
      mbarriers_[which].waiting.push_back(thread);
      block_->wait(thread, "mbarrier_wait");
    }
    block_->order().learn(thread, mbarriers_[which].done);
  }

  // ---- named barriers

  void named_barrier(int thread, int number, int count, bool waits, const place& here) {
    if (number < 1 || number > 15) block_->fail(thread, "uses a named barrier that there is not", here);
    named_state& one = named_[static_cast<std::size_t>(number)];
    if (count % 32 != 0 || count > block_->threads() || (one.arrived > 0 && one.count != count)) {
      block_->fail(thread, "uses a named barrier with another number of threads", here);
    }
    one.count = count;
    block_->order().tell(thread, one.arriving);
    if (++one.arrived == count) {
      clocks::join(one.done, one.arriving);
      one.arriving.clear();
      one.arrived = 0;
      for (const int other : one.waiting) block_->wake(other);
      one.waiting.clear();
    } else if (waits) {
      one.waiting.push_back(thread);
      block_->wait(thread, "named_barrier_sync");
    }
    if (waits) block_->order().learn(thread, one.done);
  }

  // ---- memory

  void fence(int thread) { fences_.fence(thread, block_->order()); }

  void copy_tensor(int thread, int to, const orrery::detail::tensor_map& map, const int (&coordinates)[4], int offset,
                   const place& here) {
    copy one{};
    std::memcpy(&one.box, map.words, sizeof one.box);
    if (one.box.marked != encoded_box::mark) block_->fail(thread, "copies by an empty tensor map", here);
    std::copy_n(coordinates, 4, one.coordinates);
    one.to = to;
    const mbarrier& counts = at(thread, offset, here);
    one.counts = static_cast<std::size_t>(&counts - mbarriers_.data());
    if (!fences_.covers(counts.by, counts.time)) {
      block_->fail(thread, "copies with an mbarrier that was initialised without fence_async_proxy", here);
    }
    const int bytes = one.bytes();
    if (to < 0 || to % 1024 != 0 || to + bytes > block_->shared_bytes()) {
      block_->fail(thread, "copies to a place that no swizzled tile can have", here);
    }
    products_.before_write(thread, to, bytes, here);
    for (int i = 0; i < bytes; i += 2) {
      block::cell& c = block_->cell_at(to + i);
      block_->require_unused(thread, c, here);
      fences_.require(*block_, thread, c, here);
      c = {block::cell::in_flight, -1, -1, 0, 0};
    }
    copies_.push_back(one);
  }

  bool go_on() override {
    if (copies_.empty()) return false;
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    const auto which = static_cast<std::ptrdiff_t>((random_ >> 33) % copies_.size());
    const copy one = copies_[static_cast<std::size_t>(which)];
    copies_.erase(copies_.begin() + which);
    mbarrier& counts = mbarriers_[one.counts];
    for (int row = 0; row < one.box.rows; ++row) {
      for (int column = 0; column < orrery::detail::tensor_box::columns; ++column) {
        const std::uint16_t value = one.element(row, column);
        const int offset = static_cast<int>(
            swizzled(shared_window + static_cast<unsigned>(one.to + 128 * row + 2 * column)) - shared_window);
        std::memcpy(block_->memory_at(offset), &value, 2);
        block_->cell_at(offset) = {block::cell::valid, static_cast<std::int16_t>(counts.number), -1, counts.phase + 1,
                                   0};
      }
    }
    counts.bytes -= one.bytes();
    end_phase(counts);
    return true;
  }

  void before_write(int thread, int offset, int bytes, const place& here) override {
    products_.before_write(thread, offset, bytes, here);
  }

  [[nodiscard]] warpgroup_products& products() { return products_; }

  // ---- registers

  void set_registers(int thread, int count, bool more, const place& here) {
    int& has = registers_[static_cast<std::size_t>(thread / 128)];
    if (count % 8 != 0 || count < 24 || count > 256 || (more ? count < has : count > has)) {
      block_->fail(thread, "changes its registers from " + std::to_string(has) + " to " + std::to_string(count), here);
    }
    has = count;
  }

 private:
  struct mbarrier {
    int offset;
    int number;  ///< among the clocks
    int expected;
    int pending;
    int by;  ///< who initialised it, and when
    std::uint32_t time;
    std::int64_t bytes = 0;
    std::uint32_t phase = 0;
    clocks::times arriving = {}, done = {};
    std::vector<int> waiting = {};
  };
  struct named_state {
    int count = 0;
    int arrived = 0;
    clocks::times arriving = {}, done = {};
    std::vector<int> waiting = {};
  };
  struct copy {
    encoded_box box;
    int coordinates[4];
    int to;
    std::size_t counts;

    [[nodiscard]] int bytes() const { return 128 * box.rows; }
    [[nodiscard]] std::uint16_t element(int row, int column) const {
      const std::int64_t at[4] = {coordinates[0] + column, coordinates[1] + row, coordinates[2], coordinates[3]};
      const auto* from = static_cast<const char*>(box.data) + 2 * at[0];
      for (int i = 0; i < 4; ++i) {
        if (at[i] < 0 || at[i] >= box.extent[i]) return 0;
        if (i > 0) from += at[i] * box.stride_bytes[i - 1];
      }
      std::uint16_t value;
      std::memcpy(&value, from, 2);
      return value;
    }
  };
  /// Of each thread, as a compiler gives them out that is told that there is one block a multiprocessor.
  [[nodiscard]] int launch_registers() const { return (std::min)(65536 / block_->threads() / 8 * 8, 255); }

  [[nodiscard]] mbarrier& at(int thread, int offset, const place& here) {
    for (mbarrier& one : mbarriers_) {
      if (one.offset != offset) continue;
      if (!block_->order().knows(thread, one.by, one.time)) {
        block_->fail(thread, "uses an mbarrier that another thread initialised, without a barrier", here);
      }
      return one;
    }
    block_->fail(thread, "uses an mbarrier that is not initialised", here);
  }
  void end_phase(mbarrier& one) {
    if (one.pending != 0 || one.bytes != 0) return;
    ++one.phase;
    one.pending = one.expected;
    const auto number = static_cast<std::size_t>(one.number);
    if (one.arriving.size() <= number) one.arriving.resize(number + 1, 0);
    one.arriving[number] = one.phase;
    clocks::join(one.done, one.arriving);
    one.arriving.clear();
    for (const int thread : one.waiting) block_->wake(thread);
    one.waiting.clear();
  }

  class block* block_;
  std::vector<mbarrier> mbarriers_;
  std::array<named_state, 16> named_;
  std::vector<copy> copies_;
  proxy_fences fences_;
  warpgroup_products products_;
  std::vector<int> registers_;  ///< of a warpgroup's threads
  std::uint64_t random_ = 1;
};

}  // namespace emulator
