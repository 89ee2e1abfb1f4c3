// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

namespace orrery::detail {

/// Thrown if there is not enough memory for a plan. The message says how many bytes were requested, and for what.
class memory_error : public std::bad_alloc {
 public:
  memory_error(const char* what_for, std::int64_t bytes) noexcept {
    std::snprintf(text_, sizeof text_,
                  "orrery: no memory for %s: %lld bytes were asked for; use more ranks, a smaller shape or a topology "
                  "with fewer slots (see orrery::traffic)",
                  what_for, static_cast<long long>(bytes));
  }
  [[nodiscard]] const char* what() const noexcept override { return text_; }

 private:
  char text_[256];  // a std::string would allocate
};

/// Allocates a `Memory`. The message of an error says that it is for `what_for`.
template <class Memory>
[[nodiscard]] Memory memory_for(const char* what_for, std::int64_t bytes) try {
  return Memory{bytes};
} catch (const std::bad_alloc&) {
  throw memory_error{what_for, bytes};
}

/// Host memory, aligned to 64 bytes and zeroed: the buffers of plans on transports whose ranks compute on processors.
/// Throws `memory_error`.
class host_memory {
 public:
  host_memory() = default;
  explicit host_memory(std::int64_t bytes) {
    if (bytes < 1) return;
    const auto size = static_cast<std::size_t>(bytes);
    void* const taken = bytes > most ? nullptr : ::operator new(size, alignment, std::nothrow);
    if (taken == nullptr) throw memory_error{"a plan", bytes};
    data_ = static_cast<std::byte*>(std::memset(taken, 0, size));
  }
  host_memory(host_memory&& other) noexcept : data_{std::exchange(other.data_, nullptr)} {}
  host_memory& operator=(host_memory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~host_memory() { ::operator delete(data_, alignment); }
  [[nodiscard]] std::byte* data() const noexcept { return data_; }

 private:
  static constexpr std::align_val_t alignment{64};
  static constexpr std::int64_t most = std::int64_t{1} << 48;  // no system gives a process more
  std::byte* data_ = nullptr;
};

}  // namespace orrery::detail
