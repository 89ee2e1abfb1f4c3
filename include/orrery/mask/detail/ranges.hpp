// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <ranges>
#include <type_traits>

namespace orrery::detail {

/// Lengths, or positions: a sized range of integers, of any type.
template <class Range>
concept range_of_integers = std::ranges::sized_range<const Range> &&
    std::integral<std::remove_cvref_t<std::ranges::range_reference_t<const Range>>>;

}  // namespace orrery::detail
