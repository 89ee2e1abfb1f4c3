// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The names of namespace orrery are those of a list, tests/structure/public_names.txt: a new one is a decision.
#include <algorithm>
#include <fstream>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "structure/headers.hpp"

namespace {

/// What a header declares in namespace orrery itself. Headers are formatted: what begins in the first column is a
/// declaration of the innermost namespace.
std::set<std::string> names_of(const structure::header& h) {
  const std::regex opens{"namespace ([\\w:]+) \\{"};
  const std::regex closes{"\\}  // namespace ([\\w:]+)"};
  const std::regex type{
      "(?:template <.*> )?(?:class|struct|enum class|concept)(?: \\[\\[\\w+\\]\\])? (\\w+)\\b(?!<).*"};
  const std::regex alias{"using (\\w+) = .*"};
  const std::regex republished{"using (?:schedule|detail)::(\\w+);"};
  const std::regex variable{"(?:inline )?constexpr [^(]*?(\\w+)(?:<[^(]*>)?(?: =.*|\\{.*)"};
  const std::regex function{"[^(]*[ &*](\\w+)\\(.*"};
  std::set<std::string> names;
  std::vector<std::string> where;
  for (const std::string& line : h.lines) {
    std::smatch m;
    if (std::regex_match(line, m, opens)) {
      where.push_back(m[1]);
    } else if (std::regex_match(line, m, closes)) {
      if (!where.empty()) where.pop_back();
    } else if (where != std::vector<std::string>{"orrery"} || line.empty() || line[0] == ' ' || line[0] == '/' ||
               line[0] == '#' || line[0] == '}') {
      continue;
    } else if (std::regex_match(line, m, type) || std::regex_match(line, m, alias) ||
               std::regex_match(line, m, republished) || std::regex_match(line, m, variable)) {
      names.insert(m[1]);
    } else if (line.find("template <") != 0 && line.find("static_assert(") != 0 && line.find("requires") != 0 &&
               line.find("__global__") != 0 && line.find("operator") == std::string::npos &&
               std::regex_match(line, m, function)) {
      names.insert(m[1]);
    }
  }
  return names;
}

}  // namespace

TEST_CASE("namespace orrery holds the names of the list, and no others") {
  std::ifstream list{ORRERY_TESTS_DIR "/structure/public_names.txt"};
  std::set<std::string> expected;
  for (std::string name; std::getline(list, name);) {
    if (!name.empty() && name[0] != '#') expected.insert(name);
  }
  std::set<std::string> found;
  for (const structure::header& h : structure::headers()) {
    for (const std::string& name : names_of(h)) {
      found.insert(name);
      INFO(h.path, " declares orrery::", name, ", which is not in tests/structure/public_names.txt");
      CHECK(expected.count(name) == 1);
    }
  }
  CHECK(found.size() > 40);
  for (const std::string& name : expected) {
    INFO("orrery::", name, " of tests/structure/public_names.txt is declared nowhere");
    CHECK(found.count(name) == 1);
  }
}
