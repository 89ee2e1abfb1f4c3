// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A build with the standard before.
//
// FLAGS: -std=c++17
// EXPECT: Orrery needs C\+\+20: compile with -std=c\+\+20
// EXPECT: compilation stops here: see the error above
// ERRORS: 2

#include "orrery/orrery.hpp"
