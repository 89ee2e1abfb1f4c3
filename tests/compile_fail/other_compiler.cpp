// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A compiler that is neither GCC nor Clang.
//
// FLAGS: -U__GNUC__
// EXPECT: Orrery needs GCC 12 or newer, or Clang 14 or newer: its kernels use their vector extensions
// EXPECT: compilation stops here: see the error above
// ERRORS: 2

#include "orrery/orrery.hpp"
