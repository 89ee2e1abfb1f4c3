// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "orrery/host/memory.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// Memory that kernels read and the host cannot: a plan writes to it.
template <class Memory>
concept memory_of_device = requires(const Memory& memory, const void* from, std::int64_t bytes) {
  memory.write(from, bytes);
};

/// A mask whose table a plan has copied to the device. It is the mask itself on the host, and copies share the table.
template <mask_with_table Mask, memory_of_device Memory>
class mask_on_device : public Mask {
 public:
  /// Throws `memory_error`, or what Memory does.
  explicit mask_on_device(const Mask& mask)
      : Mask(mask), table_{std::make_shared<Memory>(copied(mask))}, view_{mask.view(address())} {}

  /// For kernels.
  [[nodiscard]] const auto& on_device() const noexcept { return view_; }
  /// The bytes of the table on the device.
  [[nodiscard]] std::int64_t bytes_on_device() const noexcept { return bytes_of_table(*this); }

 private:
  [[nodiscard]] static std::int64_t bytes_of_table(const Mask& mask) noexcept {
    return std::int64_t{sizeof(std::int64_t)} * mask.table_size();
  }
  [[nodiscard]] static Memory copied(const Mask& mask) {
    std::vector<std::int64_t> numbers(static_cast<std::size_t>(mask.table_size()));
    mask.write_table(numbers.data());
    Memory memory = memory_for<Memory>("the table of a mask", bytes_of_table(mask));
    memory.write(numbers.data(), bytes_of_table(mask));
    return memory;
  }
  [[nodiscard]] const std::int64_t* address() const noexcept {
    return reinterpret_cast<const std::int64_t*>(table_->data());
  }

  std::shared_ptr<Memory> table_;
  std::remove_cvref_t<decltype(std::declval<const Mask&>().view(nullptr))> view_;
};

template <class Mask, class Memory>
struct planned_mask_of {
  using type = Mask;
};
template <mask_with_table Mask, memory_of_device Memory>
struct planned_mask_of<Mask, Memory> {
  using type = mask_on_device<Mask, Memory>;
};
/// The mask that a plan keeps, constructible from the user's.
template <class Mask, class Memory>
using planned_mask = typename planned_mask_of<Mask, Memory>::type;

/// What of a plan's mask its kernels take.
template <class Mask>
[[nodiscard]] const auto& mask_for_kernels(const Mask& mask) noexcept {
  if constexpr (requires { mask.on_device(); }) {
    return mask.on_device();
  } else {
    return mask;
  }
}

/// The bytes that a plan's mask has taken of the transport's memory.
template <class Mask>
[[nodiscard]] std::int64_t bytes_of_mask(const Mask& mask) noexcept {
  if constexpr (requires { mask.bytes_on_device(); }) {
    return mask.bytes_on_device();
  } else {
    return 0;
  }
}

}  // namespace orrery::detail
