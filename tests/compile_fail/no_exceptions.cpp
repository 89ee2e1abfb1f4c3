// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A build without exceptions.
//
// FLAGS: -fno-exceptions
// EXPECT: Orrery reports errors by exceptions: compile without -fno-exceptions
// EXPECT: compilation stops here: see the error above
// ERRORS: 2

#include "orrery/orrery.hpp"
