// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace bench {

/// The arguments of a benchmark that takes them by position. Prints the usage and ends the program for `--help`
/// (status 0), and for what it does not understand (status 2).
///
///     bench::arguments given{argc, argv, "bench_kernel_flash [sequence = 4096] [heads = 8]"};
///     const std::int64_t sequence = given.number("sequence", 4096);
///     const std::int64_t heads = given.number("heads", 8);
///     given.finish();
class arguments {
 public:
  arguments(int argc, char** argv, std::string usage) : given_{argv + 1, argv + argc}, usage_{std::move(usage)} {
    for (const std::string& each : given_) {
      if (each.empty() || each[0] != '-') continue;
      if (each != "-h" && each != "--help") refuse(each + " is no flag");
      std::printf("usage: %s\n", usage_.c_str());
      std::exit(std::fflush(stdout) == 0 ? 0 : 1);
    }
  }

  /// The next argument, a whole number from `least` to `most`; `otherwise` if there is none left.
  [[nodiscard]] std::int64_t number(const char* name, std::int64_t otherwise, std::int64_t least = 1,
                                    std::int64_t most = std::int64_t{1} << 40) {
    if (next_ == given_.size()) return otherwise;
    const std::string& text = given_[next_++];
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value < least || value > most) {
      refuse(name + std::string{" is \""} + text + "\", expected a number from " + std::to_string(least) + " to " +
             std::to_string(most));
    }
    return value;
  }

  /// The next argument, one of two words; the first one if there is none left.
  [[nodiscard]] std::string word(const char* name, const char* first, const char* second) {
    if (next_ == given_.size()) return first;
    const std::string& text = given_[next_++];
    if (text != first && text != second)
      refuse(name + std::string{" is \""} + text + "\", expected " + first + " or " + second);
    return text;
  }

  /// Refuses arguments that are left.
  void finish() const {
    if (next_ < given_.size()) refuse("\"" + given_[next_] + "\" is an argument too many");
  }

  [[noreturn]] void refuse(const std::string& why) const {
    std::fprintf(stderr, "%s: %s\nusage: %s\n", usage_.substr(0, usage_.find(' ')).c_str(), why.c_str(),
                 usage_.c_str());
    std::exit(2);
  }

 private:
  std::vector<std::string> given_;
  std::string usage_;
  std::size_t next_ = 0;
};

}  // namespace bench
