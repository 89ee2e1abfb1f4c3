// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "support/flash_steps.hpp"

namespace orrery::detail {

template flash_steps<float> flash_steps_for<float>(instruction_set) noexcept;
template flash_steps<double> flash_steps_for<double>(instruction_set) noexcept;

}  // namespace orrery::detail
