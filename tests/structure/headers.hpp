// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <vector>

/// The library's headers as texts, for tests of their structure.
namespace structure {

struct header {
  std::string path;                   // relative to include/orrery, as "kernel/flash.hpp"
  std::vector<std::string> includes;  // other headers of the library, likewise
  std::vector<std::string> lines;
};

inline std::vector<header> headers() {
  const std::filesystem::path root{ORRERY_INCLUDE_DIR "/orrery"};
  const std::regex include{"#include \"orrery/([^\"]+)\".*"};
  std::vector<header> all;
  for (const auto& entry : std::filesystem::recursive_directory_iterator{root}) {
    if (!entry.is_regular_file()) continue;
    header h;
    h.path = entry.path().lexically_relative(root).generic_string();
    std::ifstream stream{entry.path()};
    for (std::string line; std::getline(stream, line);) {
      std::smatch found;
      if (std::regex_match(line, found, include)) h.includes.push_back(found[1]);
      h.lines.push_back(line);
    }
    all.push_back(h);
  }
  return all;
}

}  // namespace structure
