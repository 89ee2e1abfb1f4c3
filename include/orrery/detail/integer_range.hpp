// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstddef>
#include <iterator>
#include <type_traits>

namespace orrery::detail {

/// Lengths, or positions: a sized range of integers of any type, such as a vector, a span or an array. (`<ranges>`
/// would take compilers a third of what all of this library's headers do.)
template <class Range>
concept integer_range = requires(const Range& range) {
  { std::size(range) } -> std::convertible_to<std::size_t>;
  std::end(range);
  requires std::integral<std::remove_cvref_t<decltype(*std::begin(range))>>;
};

}  // namespace orrery::detail
