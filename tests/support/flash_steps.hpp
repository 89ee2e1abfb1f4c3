// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/kernel/cpu/microkernels.hpp"

// The vector code of the flash kernel is the same for every mask, topology and transport, and takes compilers longer
// than most tests do, above all with a sanitizer's checks in it. So the test programs share one copy of it, in
// flash_steps.cpp.
namespace orrery::detail {

extern template flash_steps<float> flash_steps_for<float>(instruction_set) noexcept;
extern template flash_steps<double> flash_steps_for<double>(instruction_set) noexcept;

}  // namespace orrery::detail
