// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "training.hpp"

namespace train {

/// The training of ranks that are streams of CUDA devices. Throws, if there is none or the program was compiled without
/// CUDA (devices.cu, or else no_devices.cpp), an exception that says what is missing.
[[nodiscard]] training training_on_devices();

}  // namespace train
