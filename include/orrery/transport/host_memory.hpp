// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace orrery {

/// Host memory aligned to 64 bytes, zeroed: where plans live on every transport whose ranks compute on processors.
/// Throws `std::bad_alloc`.
class host_memory {
 public:
  host_memory() = default;
  explicit host_memory(std::int64_t bytes)
      : data_{bytes > 0 ? static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), alignment))
                        : nullptr} {
    if (data_ != nullptr) std::memset(data_.get(), 0, static_cast<std::size_t>(bytes));
  }
  [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }

 private:
  static constexpr std::align_val_t alignment{64};
  struct release {
    void operator()(std::byte* data) const noexcept { ::operator delete(data, alignment); }
  };
  std::unique_ptr<std::byte, release> data_;
};

}  // namespace orrery
