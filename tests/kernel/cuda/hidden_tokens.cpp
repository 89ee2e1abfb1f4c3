// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// On the emulated device.
#include "device/emulator.hpp"

namespace cuda_test {
using tested = emulator::device;
}

#include "kernel/cuda/hidden_tokens_cases.hpp"
