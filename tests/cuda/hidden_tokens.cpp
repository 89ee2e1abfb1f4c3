// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// On the emulated device.
#include "cuda/emulator.hpp"

namespace cuda_test {
using tested = emulator::device;
}

#include "cuda/hidden_tokens_cases.hpp"
