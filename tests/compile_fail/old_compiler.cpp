// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A compiler that is too old.
//
// FLAGS: -U__clang_major__ -D__clang_major__=13 -U__GNUC__ -D__GNUC__=11
// EXPECT: Orrery needs GCC 12 or newer, or Clang 14 or newer: this compiler is older
// EXPECT: compilation stops here: see the error above
// ERRORS: 2

#include "orrery/orrery.hpp"
