// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "orrery/host/memory.hpp"

namespace orrery::detail {

/// The buffers of a plan, whatever their memory.
class any_plan_memory {
 public:
  any_plan_memory(const any_plan_memory&) = delete;
  any_plan_memory& operator=(const any_plan_memory&) = delete;
  virtual ~any_plan_memory() = default;
  /// An address that differs between types of memory.
  [[nodiscard]] virtual const void* type() const noexcept = 0;

 protected:
  any_plan_memory() = default;
};

/// The buffers of a plan, kept for the next plan. The n-th `take` after `restart` returns the n-th buffer, which is
/// replaced if it is too small and else keeps its contents.
template <class Memory>
class plan_memory final : public any_plan_memory {
 public:
  /// Returns `kept`, ready for another plan, if it is of this memory, or else new buffers.
  [[nodiscard]] static std::unique_ptr<plan_memory> reuse(std::unique_ptr<any_plan_memory> kept) {
    if (kept == nullptr || kept->type() != type_of_memory()) return std::make_unique<plan_memory>();
    std::unique_ptr<plan_memory> same{static_cast<plan_memory*>(kept.release())};
    same->restart();
    return same;
  }

  /// Begins another plan. The addresses that the last one took must no longer be used.
  void restart() noexcept { next_ = 0; }

  /// Returns the address of a buffer of at least `bytes`. Throws `memory_error`, which says that it is for `what_for`.
  [[nodiscard]] std::byte* take(const char* what_for, std::int64_t bytes) {
    if (next_ == buffers_.size()) buffers_.emplace_back();
    buffer& next = buffers_[next_++];
    if (bytes > next.bytes) {
      next = {};  // frees the old memory before it takes more
      next = {bytes, memory_for<Memory>(what_for, bytes)};
    }
    return reinterpret_cast<std::byte*>(next.memory.data());
  }

  /// The bytes of all buffers.
  [[nodiscard]] std::int64_t bytes() const noexcept {
    std::int64_t sum = 0;
    for (const buffer& one : buffers_) sum += one.bytes;
    return sum;
  }

  [[nodiscard]] const void* type() const noexcept override { return type_of_memory(); }

 private:
  static const void* type_of_memory() noexcept {
    static const char name_of_type = 0;  // its address
    return &name_of_type;
  }

  struct buffer {
    std::int64_t bytes = 0;
    Memory memory;
  };

  std::vector<buffer> buffers_;
  std::size_t next_ = 0;
};

}  // namespace orrery::detail
