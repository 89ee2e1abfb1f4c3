// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <ucontext.h>

#include "device/emulator_clocks.hpp"

/// The blocks of threads of the device on the host, see `emulator.hpp`.
namespace emulator {

class misuse : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What goes on in a block's shared memory while its threads do something else.
class asynchronous_work {
 public:
  virtual ~asynchronous_work() = default;
  /// Something happens, as late as possible: no thread can go on. False if there is nothing left that could.
  virtual bool go_on() = 0;
  /// A thread is about to write to shared memory.
  virtual void before_write(int thread, int offset, int bytes, const std::source_location& place) = 0;
};

/// A block of threads that run in turn, each on a stack of its own.
///
/// Where a block's threads meet at barriers of the whole block only, accesses are ordered by counting those. Where
/// there is asynchronous work, they also meet in parts, and are ordered by `clocks`.
class block {
 public:
  explicit block(int threads)
      : fibers_(static_cast<std::size_t>(threads)), warps_(static_cast<std::size_t>(threads / 32)) {
    for (fiber& one : fibers_) one.stack.reset(new std::byte[stack_bytes]);
  }

  void give_shared_memory(int bytes) {
    memory_.resize(static_cast<std::size_t>((bytes + 15) / 16 * 16));
    shadow_.resize(memory_.size() / 2);
  }

  /// Calls work(thread) on every thread, beside what is going on asynchronously, if anything is.
  void run(std::int64_t index, const std::function<void(int)>& work, asynchronous_work* beside = nullptr) {
    index_ = index;
    work_ = &work;
    beside_ = beside;
    if (beside_ != nullptr) order_.begin(threads());
    readers_.clear();
    failure_ = nullptr;
    epoch_ = 1;
    std::fill(shadow_.begin(), shadow_.end(), cell{});
    std::fill(warps_.begin(), warps_.end(), gathering{});
    std::fill(warpgroups_.begin(), warpgroups_.end(), gathering{});
    barrier_ = {};
    const int count = threads();
    for (int i = 0; i < count; ++i) {
      fiber& one = fiber_of(i);
      one.state = status::ready;
      one.begun = false;
      one.copies.clear();
      one.groups = 0;
      getcontext(&one.context);
      one.context.uc_stack.ss_sp = one.stack.get();
      one.context.uc_stack.ss_size = stack_bytes;
      one.context.uc_link = nullptr;
      const auto self = reinterpret_cast<std::uintptr_t>(this);
      makecontext(&one.context, reinterpret_cast<void (*)()>(&block::enter), 2, static_cast<unsigned>(self),
                  static_cast<unsigned>(self >> 32));
    }
    for (int left = count; left > 0;) {
      bool moved = false;
      for (int i = 0; i < count; ++i) {
        if (fiber_of(i).state != status::ready) continue;
        moved = true;
        current_ = i;
        resume(i);
        if (failure_) std::rethrow_exception(failure_);
        if (fiber_of(i).state == status::ended) --left;
      }
      if (!moved && (beside_ == nullptr || !beside_->go_on())) throw misuse{stuck()};
    }
  }

  [[nodiscard]] std::int64_t index() const { return index_; }
  [[nodiscard]] int threads() const { return static_cast<int>(fibers_.size()); }

  // ---- collectives

  /// All threads of the block arrive, at the same place.
  void barrier(int thread, const std::source_location& place) {
    arrive(barrier_, 0, threads(), thread, "barrier", nullptr, place, [this](void* const*) {
      ++epoch_;
      if (beside_ != nullptr) order_.meet(0, threads());
    });
  }

  /// The lanes of a warp arrive, and see what the others wrote.
  void converge(int thread, const std::source_location& place) {
    collective(thread, "converge", nullptr, place, [&](void* const*) {
      if (beside_ != nullptr) order_.meet(thread / 32 * 32, 32);
    });
  }

  /// All lanes of a warp arrive, at the same place; the last calls complete(what each lane brought).
  template <class Complete>
  void collective(int thread, const char* what, void* brought, const std::source_location& place,
                  const Complete& complete) {
    const int warp = thread / 32;
    arrive(warps_[static_cast<std::size_t>(warp)], 32 * warp, 32, thread, what, brought, place, complete);
  }

  /// All threads of a warpgroup arrive, at the same place; the last calls complete(what each of them brought).
  template <class Complete>
  void warpgroup_collective(int thread, const char* what, void* brought, const std::source_location& place,
                            const Complete& complete) {
    const int group = thread / 128;
    if (warpgroups_.size() * 128 < fibers_.size()) warpgroups_.resize(fibers_.size() / 128);
    arrive(warpgroups_[static_cast<std::size_t>(group)], 128 * group, 128, thread, what, brought, place, complete);
  }

  /// The thread waits until somebody calls `wake` with its number.
  void wait(int thread, const char* what) {
    fiber_of(thread).state = status::waiting;
    fiber_of(thread).waits_in = what;
    yield(thread);
  }
  void wake(int thread) { fiber_of(thread).state = status::ready; }

  /// Which threads know of which others' doings; meaningful beside asynchronous work.
  [[nodiscard]] clocks& order() { return order_; }

  // ---- shared memory

  /// What is known of two bytes of shared memory: who wrote and read them, and when: since which barrier, or at which
  /// time of the thread's clock.
  struct cell {
    enum : std::uint8_t { poison, in_flight, valid, mbarrier };
    std::uint8_t state = poison;
    std::int16_t writer = -1;  ///< beyond the threads: an mbarrier
    std::int16_t reader = -1;  ///< -2: several
    std::uint32_t write_epoch = 0;
    std::uint32_t read_epoch = 0;  ///< or, of several, an index
  };
  [[nodiscard]] cell& cell_at(int offset) { return shadow_[static_cast<std::size_t>(offset / 2)]; }
  [[nodiscard]] std::byte* memory_at(int offset) { return memory_.data() + offset; }
  [[nodiscard]] int shared_bytes() const { return static_cast<int>(memory_.size()); }

  /// A write by the asynchronous proxy, which `thread` asks for, is about to begin: nothing that it overwrites may be
  /// in use.
  void require_unused(int thread, cell& c, const std::source_location& place) {
    if (c.state == cell::mbarrier) fail(thread, "writes to an mbarrier", place);
    if (c.state == cell::in_flight) fail(thread, "writes where a copy is on its way", place);
    if (c.writer >= 0 && !order_.knows(thread, c.writer, c.write_epoch)) {
      fail(thread, "writes what " + writer(c) + " wrote, without a barrier", place);
    }
    if (c.reader >= 0 && !order_.knows(thread, c.reader, c.read_epoch)) fail_read_before_write(thread, place);
    if (c.reader == -2) {
      const auto& times = readers_[c.read_epoch];
      for (int other = 0; other < threads(); ++other) {
        if (!order_.knows(thread, other, times[static_cast<std::size_t>(other)])) fail_read_before_write(thread, place);
      }
    }
  }

  template <class T>
  [[nodiscard]] T load(int thread, int offset, const std::source_location& place) {
    static_assert(std::is_trivially_copyable_v<T>);
    read_access(thread, offset, static_cast<int>(sizeof(T)), place);
    T value;
    std::memcpy(&value, memory_.data() + offset, sizeof(T));
    return value;
  }
  template <class T>
  void store(int thread, int offset, const T& value, const std::source_location& place) {
    static_assert(std::is_trivially_copyable_v<T>);
    write_access(thread, offset, static_cast<int>(sizeof(T)), cell::valid, place);
    std::memcpy(memory_.data() + offset, &value, sizeof(T));
  }

  void copy_async(int thread, int offset, const void* from, int bytes, bool present,
                  const std::source_location& place) {
    if (present) require_aligned(from, static_cast<std::uintptr_t>(bytes), thread, place);
    write_access(thread, offset, bytes, cell::in_flight, place);
    fiber_of(thread).copies.push_back({offset, bytes, present ? from : nullptr, -1});
  }
  void commit_copies(int thread) {
    fiber& own = fiber_of(thread);
    for (copy& one : own.copies) {
      if (one.group < 0) one.group = own.groups;
    }
    ++own.groups;
  }
  void wait_for_copies(int thread, int pending) {
    fiber& own = fiber_of(thread);
    std::erase_if(own.copies, [&](const copy& one) {
      if (one.group < 0 || one.group >= own.groups - pending) return false;
      if (one.from != nullptr) {
        std::memcpy(memory_.data() + one.offset, one.from, static_cast<std::size_t>(one.bytes));
      } else {
        std::memset(memory_.data() + one.offset, 0, static_cast<std::size_t>(one.bytes));
      }
      for (int i = 0; i < one.bytes / 2; ++i) {
        cell& c = shadow_[static_cast<std::size_t>(one.offset / 2 + i)];
        c.state = cell::valid;
        c.write_epoch = epoch_;
      }
      return true;
    });
  }
  void require_aligned(const void* address, std::uintptr_t bytes, int thread, const std::source_location& place) const {
    if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
      fail(thread, "a vector in global memory is misaligned", place);
    }
  }

  [[noreturn]] void fail(int thread, const std::string& what, const std::source_location& place) const {
    throw misuse{"block " + std::to_string(index_) + ", thread " + std::to_string(thread) + ", " + file(place) + ":" +
                 std::to_string(place.line()) + ": " + what};
  }

 private:
  static constexpr std::size_t stack_bytes = 256 * 1024;

  enum class status { ready, waiting, ended };

  struct copy {
    int offset;
    int bytes;
    const void* from;
    int group;
  };
  struct fiber {
    ucontext_t context;
    std::jmp_buf jump;
    bool begun = false;
    std::unique_ptr<std::byte[]> stack;
    status state = status::ready;
    const char* waits_in = "";
    std::vector<copy> copies;
    int groups = 0;
  };
  struct gathering {
    int arrived = 0;
    const char* what = "";
    std::source_location place;
    std::vector<void*> brought;
  };

  [[nodiscard]] fiber& fiber_of(int thread) { return fibers_[static_cast<std::size_t>(thread)]; }

  static std::string file(const std::source_location& place) {
    const std::string path = place.file_name();
    return path.substr(path.find_last_of('/') + 1);
  }

  static void enter(unsigned low, unsigned high) {
    auto* const self =
        reinterpret_cast<block*>(static_cast<std::uintptr_t>(low) | static_cast<std::uintptr_t>(high) << 32);
    const int own = self->current_;
    try {
      (*self->work_)(own);
      if (!self->fiber_of(own).copies.empty()) {
        self->fail(own, "ends while its copies to shared memory are on their way", std::source_location::current());
      }
    } catch (...) {
      self->failure_ = std::current_exception();
    }
    self->fiber_of(own).state = status::ended;
    self->yield(own);
  }
  // A fiber begins as a context; from then on the two jump, which unlike swapping contexts calls no system.
  void resume(int thread) {
    if (_setjmp(scheduler_) != 0) return;
    fiber& one = fiber_of(thread);
    if (one.begun) _longjmp(one.jump, 1);
    one.begun = true;
    setcontext(&one.context);
  }
  void yield(int thread) {
    if (_setjmp(fiber_of(thread).jump) == 0) _longjmp(scheduler_, 1);
  }

  template <class Complete>
  void arrive(gathering& all, int first, int count, int thread, const char* what, void* brought,
              const std::source_location& place, const Complete& complete) {
    if (all.arrived == 0) {
      all.what = what;
      all.place = place;
      all.brought.assign(static_cast<std::size_t>(count), nullptr);
    } else if (all.what != what || all.place.line() != place.line() || all.place.file_name() != place.file_name()) {
      fail(thread,
           std::string{"is in "} + what + ", while others of its " +
               (count == 32         ? "warp"
                : &all == &barrier_ ? "block"
                                    : "warpgroup") +
               " are in " + all.what + " at " + file(all.place) + ":" + std::to_string(all.place.line()),
           place);
    }
    all.brought[static_cast<std::size_t>(thread - first)] = brought;
    if (++all.arrived < count) {
      fiber_of(thread).state = status::waiting;
      fiber_of(thread).waits_in = what;
      yield(thread);
      return;
    }
    complete(all.brought.data());
    all.arrived = 0;
    for (int i = first; i < first + count; ++i) fiber_of(i).state = status::ready;
  }

  [[nodiscard]] std::string stuck() {
    std::string text = "block " + std::to_string(index_) + " stands still:";
    int ended = 0;
    const char* first = nullptr;
    for (int i = 0; i < threads(); ++i) {
      if (fiber_of(i).state == status::ended) ++ended;
      if (fiber_of(i).state == status::waiting && first == nullptr) {
        first = fiber_of(i).waits_in;
        text += " thread " + std::to_string(i) + " waits in " + first + ",";
      }
    }
    return text + " and " + std::to_string(ended) + " threads have ended";
  }

  void check(int thread, int offset, int bytes, const std::source_location& place) const {
    if (offset < 0 || offset + bytes > static_cast<int>(memory_.size())) {
      fail(thread,
           "shared memory is " + std::to_string(memory_.size()) + " bytes, accessed at " + std::to_string(offset),
           place);
    }
    if (offset % bytes != 0) fail(thread, "misaligned access of shared memory at " + std::to_string(offset), place);
  }
  void read_access(int thread, int offset, int bytes, const std::source_location& place) {
    check(thread, offset, bytes, place);
    for (int i = 0; i < bytes / 2; ++i) {
      cell& c = shadow_[static_cast<std::size_t>(offset / 2 + i)];
      if (c.state == cell::poison) fail(thread, "reads shared memory that nobody has written", place);
      if (c.state == cell::in_flight) fail(thread, "reads shared memory whose copy has not been waited for", place);
      if (c.state == cell::mbarrier) fail(thread, "reads an mbarrier", place);
      if (beside_ != nullptr) {
        read_by_clock(thread, c, place);
        continue;
      }
      if (c.writer != thread && c.write_epoch == epoch_) {
        fail(thread, "reads what thread " + std::to_string(c.writer) + " wrote, without a barrier", place);
      }
      if (c.read_epoch == epoch_ && c.reader != thread) {
        c.reader = -2;
      } else {
        c.reader = static_cast<std::int16_t>(thread);
        c.read_epoch = epoch_;
      }
    }
  }
  void write_access(int thread, int offset, int bytes, std::uint8_t state, const std::source_location& place) {
    check(thread, offset, bytes, place);
    if (beside_ != nullptr) {
      beside_->before_write(thread, offset, bytes, place);
      for (int i = 0; i < bytes / 2; ++i) {
        cell& c = cell_at(offset + 2 * i);
        require_unused(thread, c, place);
        c = {state, static_cast<std::int16_t>(thread), -1, order_.now(thread), 0};
      }
      return;
    }
    for (int i = 0; i < bytes / 2; ++i) {
      cell& c = shadow_[static_cast<std::size_t>(offset / 2 + i)];
      if (c.write_epoch == epoch_ && c.writer != thread) {
        fail(thread, "writes what thread " + std::to_string(c.writer) + " wrote, without a barrier", place);
      }
      if (c.read_epoch == epoch_ && c.reader != thread) {
        fail(thread, "writes what another thread reads, without a barrier", place);
      }
      if (c.state == cell::in_flight) fail(thread, "writes where a copy is on its way", place);
      c.state = state;
      c.writer = static_cast<std::int16_t>(thread);
      c.write_epoch = epoch_;
    }
  }

  void read_by_clock(int thread, cell& c, const std::source_location& place) {
    if (!order_.knows(thread, c.writer, c.write_epoch)) {
      fail(thread, "reads what " + writer(c) + " wrote, without a barrier", place);
    }
    const std::uint32_t now = order_.now(thread);
    if (c.reader == -2) {
      readers_[c.read_epoch][static_cast<std::size_t>(thread)] = now;
    } else if (c.reader < 0 || c.reader == thread || order_.knows(thread, c.reader, c.read_epoch)) {
      c.reader = static_cast<std::int16_t>(thread);
      c.read_epoch = now;
    } else {
      std::vector<std::uint32_t> times(fibers_.size());
      times[static_cast<std::size_t>(c.reader)] = c.read_epoch;
      times[static_cast<std::size_t>(thread)] = now;
      c.reader = -2;
      c.read_epoch = static_cast<std::uint32_t>(readers_.size());
      readers_.push_back(std::move(times));
    }
  }
  [[nodiscard]] std::string writer(const cell& c) const {
    return c.writer < threads() ? "thread " + std::to_string(c.writer) : "a tensor copy";
  }
  [[noreturn]] void fail_read_before_write(int thread, const std::source_location& place) const {
    fail(thread, "writes what another thread reads, without a barrier", place);
  }

  std::vector<fiber> fibers_;
  std::vector<gathering> warps_;
  std::vector<gathering> warpgroups_;
  asynchronous_work* beside_ = nullptr;
  clocks order_;
  std::vector<std::vector<std::uint32_t>> readers_;  // of cells that several threads read: when each did
  std::vector<std::byte> memory_;
  std::vector<cell> shadow_;
  gathering barrier_;
  std::jmp_buf scheduler_;
  const std::function<void(int)>* work_ = nullptr;
  std::exception_ptr failure_;
  std::int64_t index_ = 0;
  int current_ = 0;
  std::uint32_t epoch_ = 1;
};

}  // namespace emulator
