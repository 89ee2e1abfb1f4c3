// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The rules of the folders of include/orrery: which may include which.
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "structure/headers.hpp"

using structure::header;

namespace {

/// "kernel" for kernel/cpu/simd.hpp; "" for the headers at the top.
std::string folder_of(const std::string& path) {
  const auto slash = path.find('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

/// What each folder includes of other folders, with an example of each.
std::map<std::string, std::map<std::string, std::string>> dependencies() {
  std::map<std::string, std::map<std::string, std::string>> of;
  for (const header& h : structure::headers()) {
    const std::string from = folder_of(h.path);
    for (const std::string& included : h.includes) {
      const std::string to = folder_of(included);
      if (!from.empty() && !to.empty() && from != to) of[from][to] = h.path + " includes " + included;
    }
  }
  return of;
}

}  // namespace

TEST_CASE("headers include headers that exist") {
  std::set<std::string> paths;
  for (const header& h : structure::headers()) paths.insert(h.path);
  CHECK(paths.size() > 100);
  for (const header& h : structure::headers()) {
    for (const std::string& included : h.includes) {
      INFO(h.path, " includes ", included);
      CHECK(paths.count(included) == 1);
    }
  }
}

TEST_CASE("no two folders include each other, not even by way of others") {
  auto of = dependencies();
  CHECK(of.size() > 10);
  // The transitive closure: small.
  for (bool more = true; more;) {
    more = false;
    for (auto& [from, direct] : of) {
      const auto now = direct;
      for (const auto& [middle, why] : now) {
        for (const auto& [to, next] : of[middle]) more = direct.emplace(to, why + "; " + next).second || more;
      }
    }
  }
  for (auto& folder : of) {
    INFO(folder.second[folder.first]);
    CHECK(folder.second.count(folder.first) == 0);
  }
}

TEST_CASE("kernels do not know transports, nor transports kernels, nor operators predictions") {
  auto of = dependencies();
  for (const auto& pair : std::vector<std::pair<std::string, std::string>>{{"kernel", "transport"},
                                                                           {"transport", "kernel"},
                                                                           {"transport", "attention"},
                                                                           {"attention", "predict"},
                                                                           {"attention", "kernel"},
                                                                           {"schedule", "topology"},
                                                                           {"host", "kernel"},
                                                                           {"device", "kernel"}}) {
    const std::string example = of[pair.first][pair.second];
    INFO(pair.first, " must not include ", pair.second, ": ", example);
    CHECK(example.empty());
  }
}

TEST_CASE("orrery.hpp includes no headers of CUDA, MPI or NCCL, and each header but it less than all of them") {
  std::map<std::string, std::vector<std::string>> includes;
  for (const header& h : structure::headers()) includes[h.path] = h.includes;
  std::set<std::string> reached;
  std::vector<std::string> next{"orrery.hpp"};
  while (!next.empty()) {
    const std::string path = next.back();
    next.pop_back();
    if (!reached.insert(path).second) continue;
    for (const std::string& included : includes[path]) next.push_back(included);
  }
  for (const std::string& path : reached) {
    INFO(path);
    CHECK(path.find(".cuh") == std::string::npos);
    CHECK(path.find("device/") != 0);
    CHECK(path.find("/mpi") == std::string::npos);
    CHECK(path.find("nccl") == std::string::npos);
  }
  for (const header& h : structure::headers()) {
    INFO(h.path);
    for (const std::string& included : h.includes) CHECK(included != "orrery.hpp");
  }
}

TEST_CASE("every header includes config.hpp first, and it alone defines macros") {
  for (const header& h : structure::headers()) {
    const bool config = h.path == "config.hpp";
    // The files that are included as text, in the middle of a header.
    if (h.path.find(".inc") != std::string::npos) continue;
    std::string first;
    for (const std::string& line : h.lines) {
      if (first.empty() && line.find("#") == 0 && line != "#pragma once") first = line;
      INFO(h.path, ": ", line);
      CHECK((config || line.find("#define") == std::string::npos));
    }
    INFO(h.path);
    CHECK((config || first == "#include \"orrery/config.hpp\""));
  }
}
