// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Linked into every example and benchmark: a program whose standard output could not be written (a full disk, a closed
// pipe) has failed. It then ends with status 1 and a message on the standard error, whatever its main returned.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>

namespace {

struct checked_output {
  // The streams are there before this, and therefore still after it.
  checked_output() = default;
  checked_output(const checked_output&) = delete;
  checked_output& operator=(const checked_output&) = delete;
  ~checked_output() {
    errno = 0;
    std::cout.flush();
    // Closing tells of what the system could not write later, too.
    const bool failed = std::ferror(stdout) != 0 || std::cout.fail();
    if (std::fclose(stdout) == 0 && !failed) return;
    std::fprintf(stderr, "the output could not be written%s%s\n", errno != 0 ? ": " : "",
                 errno != 0 ? std::strerror(errno) : "");
    std::_Exit(EXIT_FAILURE);
  }
} at_the_end;

}  // namespace
