// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

namespace orrery::schedule {

/// The growable array that schedules are made of.
///
/// It exists because proofs run inside compilers, which count evaluation steps and give up after a million: there,
/// `std::vector` costs three to five times as much. For the same reason, the structures in it have no default member
/// initialisers (aggregate initialisation sets every member), and `items` and `count` can be read without a call.
template <class T>
struct list {
  T* items = nullptr;
  int count = 0;

  constexpr list() = default;
  constexpr explicit list(int size)
      : items{size > 0 ? new T[static_cast<unsigned>(size)]{} : nullptr}, count{size}, capacity_{size} {}
  constexpr list(int size, const T& value) : list(size) {
    for (int i = 0; i < size; ++i) items[i] = value;
  }
  constexpr list(const list& other) : list(other.count) {
    for (int i = 0; i < count; ++i) items[i] = other.items[i];
  }
  constexpr list(list&& other) noexcept : items{other.items}, count{other.count}, capacity_{other.capacity_} {
    other.items = nullptr;
    other.count = other.capacity_ = 0;
  }
  // NOLINTNEXTLINE(bugprone-unhandled-self-assignment,misc-unconventional-assign-operator): copies, then moves
  constexpr list& operator=(const list& other) { return *this = list(other); }
  constexpr list& operator=(list&& other) noexcept {
    if (this == &other) return *this;
    delete[] items;
    items = other.items;
    count = other.count;
    capacity_ = other.capacity_;
    other.items = nullptr;
    other.count = other.capacity_ = 0;
    return *this;
  }
  constexpr ~list() { delete[] items; }

  /// `value` must not be an element of this list.
  constexpr void push_back(const T& value) { *extend(1) = value; }
  /// Room for `more` further elements, which the caller writes; the address of the first.
  constexpr T* extend(int more) {
    return count + more <= capacity_ ? items + (count += more) - more : extend_elsewhere(more);
  }
  constexpr T pop_back() { return static_cast<T&&>(items[--count]); }
  constexpr void reserve(int capacity) {
    if (capacity <= capacity_) return;
    T* grown = new T[static_cast<unsigned>(capacity)];
    for (int i = 0; i < count; ++i) grown[i] = static_cast<T&&>(items[i]);
    delete[] items;
    items = grown;
    capacity_ = capacity;
  }
  constexpr void erase(int index) {
    for (int i = index; i + 1 < count; ++i) items[i] = static_cast<T&&>(items[i + 1]);
    --count;
  }

  [[nodiscard]] constexpr int size() const noexcept { return count; }
  [[nodiscard]] constexpr bool empty() const noexcept { return count == 0; }
  [[nodiscard]] constexpr T& operator[](int i) noexcept { return items[i]; }
  [[nodiscard]] constexpr const T& operator[](int i) const noexcept { return items[i]; }
  [[nodiscard]] constexpr T& back() noexcept { return items[count - 1]; }
  [[nodiscard]] constexpr const T& back() const noexcept { return items[count - 1]; }
  [[nodiscard]] constexpr T* begin() noexcept { return items; }
  [[nodiscard]] constexpr T* end() noexcept { return items + count; }
  [[nodiscard]] constexpr const T* begin() const noexcept { return items; }
  [[nodiscard]] constexpr const T* end() const noexcept { return items + count; }

  constexpr bool operator==(const list& other) const {
    if (count != other.count) return false;
    for (int i = 0; i < count; ++i) {
      if (!(items[i] == other.items[i])) return false;
    }
    return true;
  }

 private:
  constexpr T* extend_elsewhere(int more) {
    reserve(count + more < 16 ? 16 : 4 * (count + more));
    return items + (count += more) - more;
  }

  int capacity_ = 0;
};

}  // namespace orrery::schedule
