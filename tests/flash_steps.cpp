// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "flash_steps.hpp"

namespace orrery {

template flash_steps<float> flash_steps_for<float>(instruction_set) noexcept;
template flash_steps<double> flash_steps_for<double>(instruction_set) noexcept;
template struct baseline::steps<float>;
template struct baseline::steps<double>;
#if defined(__x86_64__)
template struct avx2::steps<float>;
template struct avx2::steps<double>;
template struct avx512::steps<float>;
template struct avx512::steps<double>;
#endif

}  // namespace orrery
