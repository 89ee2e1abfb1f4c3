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

#include "orrery/kernel/device_code.hpp"
#include "orrery/kernel/device_context.hpp"
#include "orrery/kernel/device_limits.hpp"

/// A device on the host, for the tests of kernels: the threads of a block run in turn on one processor thread, and what
/// they may do together is done as PTX says, with the layouts of its fragments.
///
/// It is stricter than a GPU. It throws `misuse`, a sentence, for: shared memory that is read before it is written,
/// while it is being copied to, out of bounds or misaligned; accesses of two threads, one of them a write, without a
/// barrier between them; collectives that some threads of a warp or a block do not reach, or reach at different places;
/// vectors in global memory that are misaligned; copies whose arrival nobody waits for.
namespace emulator {

class misuse : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What a launch counts, for tests that care.
struct counts {
  std::int64_t blocks = 0;
  std::int64_t matrix_loads = 0;     ///< of 8 rows of 16 bytes
  std::int64_t matrix_replays = 0;   ///< additional accesses because two of those rows share a bank
  std::int64_t multiplications = 0;  ///< warp-wide m16n8k16
};
inline counts counted;

/// A block of threads that run in turn, each on a stack of its own.
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

  /// Calls work(thread) on every thread.
  void run(std::int64_t index, const std::function<void(int)>& work) {
    index_ = index;
    work_ = &work;
    failure_ = nullptr;
    epoch_ = 1;
    std::fill(shadow_.begin(), shadow_.end(), cell{});
    std::fill(warps_.begin(), warps_.end(), gathering{});
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
      if (!moved) throw misuse{stuck()};
    }
  }

  [[nodiscard]] std::int64_t index() const { return index_; }
  [[nodiscard]] int threads() const { return static_cast<int>(fibers_.size()); }

  // ---- collectives

  /// All threads of the block arrive, at the same place.
  void barrier(int thread, const std::source_location& place) {
    arrive(barrier_, 0, threads(), thread, "barrier", nullptr, place, [this](void* const*) { ++epoch_; });
  }

  /// All lanes of a warp arrive, at the same place; the last calls complete(what each lane brought).
  template <class Complete>
  void collective(int thread, const char* what, void* brought, const std::source_location& place,
                  const Complete& complete) {
    const int warp = thread / 32;
    arrive(warps_[static_cast<std::size_t>(warp)], 32 * warp, 32, thread, what, brought, place, complete);
  }

  // ---- shared memory

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

  /// What is known of two bytes of shared memory: who wrote and read them since which barrier.
  struct cell {
    enum : std::uint8_t { poison, in_flight, valid };
    std::uint8_t state = poison;
    std::int16_t writer = -1;
    std::int16_t reader = -1;  ///< -2: several
    std::uint32_t write_epoch = 0;
    std::uint32_t read_epoch = 0;
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
           std::string{"is in "} + what + ", while others of its " + (count == 32 ? "warp" : "block") + " are in " +
               all.what + " at " + file(all.place) + ":" + std::to_string(all.place.line()),
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

  std::vector<fiber> fibers_;
  std::vector<gathering> warps_;
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

  void converge(const place& here = place::current()) const {
    block_->collective(index_, "converge", nullptr, here, [](void* const*) {});
  }

  template <class T>
  [[nodiscard]] T load(int offset, const place& here = place::current()) const {
    return block_->load<T>(index_, offset, here);
  }
  template <class T>
  void store(int offset, const T& value, const place& here = place::current()) const {
    block_->store(index_, offset, value, here);
  }

  [[nodiscard]] orrery::vector_words read_vector(const void* from, const place& here = place::current()) const {
    block_->require_aligned(from, 16, index_, here);
    orrery::vector_words v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  void write_vector(void* to, const orrery::vector_words& v, const place& here = place::current()) const {
    block_->require_aligned(to, 16, index_, here);
    std::memcpy(to, &v, sizeof v);
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

 private:
  template <class T>
  static float half(std::uint32_t word, int high) {
    return static_cast<float>(T::of_bits(static_cast<std::uint16_t>(word >> (16 * high))));
  }

  void load_matrices(std::uint32_t (&words)[4], int offset, bool transposed, const place& here) const {
    struct request {
      orrery::vector_words row;
      int offset;
      std::uint32_t* words;
    } own{block_->load<orrery::vector_words>(index_, offset, here), offset, words};
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

  class block* block_;
  int index_;
};

/// Runs body(threads) for each thread of each block.
template <int count, class Body>
void run_grid(std::int64_t blocks, int shared_bytes, const Body& body) {
  static_assert(count % 32 == 0 && count <= 1024);
  static_assert(std::is_trivially_copyable_v<Body> && sizeof(Body) <= 4096, "a launch's arguments are copied");
  if (blocks == 0) return;
  orrery::device_limits::require_grid(blocks);
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
  static inline orrery::device_limits limits{0, 90, 227 * 1024};

  static void require(const std::string& kernel, const orrery::device_needs& needs) { limits.require(kernel, needs); }

  template <int threads, class Body>
  static void launch(const orrery::device_context&, std::int64_t blocks, int shared_bytes, const Body& body) {
    run_grid<threads>(blocks, shared_bytes, body);
  }
};

}  // namespace emulator
