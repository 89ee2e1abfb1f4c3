// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

namespace orrery {

/// Host memory aligned to 64 bytes, zeroed: where plans live on every transport whose ranks compute on processors.
/// Throws `std::bad_alloc`.
class host_memory {
 public:
  host_memory() = default;
  explicit host_memory(std::int64_t bytes) {
    if (bytes < 1) return;
    const auto size = static_cast<std::size_t>(bytes);
    data_ = static_cast<std::byte*>(std::memset(::operator new(size, alignment), 0, size));
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
  std::byte* data_ = nullptr;
};

}  // namespace orrery
