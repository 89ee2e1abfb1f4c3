// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include <stdexcept>

#include "devices.hpp"

train::training train::training_on_devices() {
  throw std::invalid_argument{
      "--device is cuda, but this program was compiled without CUDA; where CMake finds the CUDA toolkit and nvcc, "
      "configure with -D ORRERY_BUILD_CUDA=ON (`cmake --preset cuda`) and build train there"};
}
