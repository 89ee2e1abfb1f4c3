// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Processes that are killed, or stopped, in the middle of a call: every survivor ends in a sentence. This program is
// both sides of the test: it starts `mpirun ... test_mpi_killed --rank FOLDER`, and sends a signal to one of the ranks
// that it has started. It ends all of them by their process numbers, whatever happens.
//
//     test_mpi_killed MPIRUN -n
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <regex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/mpi.hpp"

#include "conformance.hpp"
#include "flash_steps.hpp"

namespace {

namespace fs = std::filesystem;
using kernel = orrery::flash<double>;

constexpr int ranks = 4;
constexpr double deadline = 2.5;

/// Appears at once, and whole.
void write(const fs::path& path, const std::string& text) {
  const fs::path draft = path.string() + ".draft";
  std::ofstream{draft} << text;
  fs::rename(draft, path);
}

std::string read(const fs::path& path) {
  std::ifstream file{path};
  return {std::istreambuf_iterator<char>{file}, {}};
}

/// Calls the operator until a call fails, writes down its sentence, and that of one more call.
int be_a_rank(const fs::path& folder, int* argc, char*** argv) {
  alarm(120);  // whatever becomes of the test
  int level = MPI_THREAD_SINGLE;
  MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level);
  orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = deadline}};
  const std::string me = std::to_string(world.rank());
  write(folder / ("pid." + me), std::to_string(getpid()));

  const orrery::attention_shape shape{.length = 64, .query_heads = 2, .head_dim = 8};
  orrery::attention<orrery::ring, kernel> attend{world, shape};
  const auto p = oracle::random_problem<double>(conformance::oracle_shape(shape), 1);
  conformance::rank_tensors<kernel> mine{p, attend.query_positions(), attend.key_positions(), {}};
  const auto sentence = [&](int calls) -> std::string {
    try {
      for (int call = 0; call < calls; ++call) {
        mine.forward(attend);
        mine.backward(attend);
        if (call == 3) write(folder / ("running." + me), "");
      }
    } catch (const orrery::transport_error& e) {
      return e.what();
    }
    return "nothing";
  };
  const std::string first = sentence(1 << 30);
  const std::string again = world.usable() ? "it says that it can be used" : sentence(1);
  write(folder / ("sentence." + me), first + "\n" + again);
  _exit(0);  // a world that has lost a rank cannot be finalised
}

/// What a test has started: ended with it.
class job {
 public:
  job(const std::vector<std::string>& command, const fs::path& folder) : folder_{folder} {
    const std::string log = (folder / "log").string();
    launcher_ = fork();
    if (launcher_ < 0) throw std::runtime_error{"fork failed"};
    if (launcher_ > 0) return;
    const int out = open(log.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    std::vector<char*> arguments;
    for (const std::string& one : command) arguments.push_back(const_cast<char*>(one.c_str()));
    arguments.push_back(nullptr);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  job(const job&) = delete;
  job& operator=(const job&) = delete;
  ~job() {
    for (int rank = 0; rank < ranks; ++rank) {
      if (const pid_t pid = process(rank); pid > 0) kill(pid, SIGKILL);
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds{5};
    while (!ended() && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds{5});
    if (!ended()) {
      kill(launcher_, SIGTERM);  // it then ends ranks that have not come to write their numbers
      std::this_thread::sleep_for(std::chrono::seconds{1});
      if (!ended()) kill(launcher_, SIGKILL);
    }
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  /// A rank's process number; 0 while it is not known.
  [[nodiscard]] pid_t process(int rank) const {
    const std::string text = read(folder_ / ("pid." + std::to_string(rank)));
    return text.empty() ? 0 : std::stoi(text);
  }
  [[nodiscard]] bool ended() {
    if (!ended_) ended_ = waitpid(launcher_, nullptr, WNOHANG) != 0;
    return ended_;
  }
  /// Waits for a file of each rank but one. A launcher may end before its ranks do.
  void wait_for(const std::string& name, std::chrono::seconds patience, int but = -1) {
    const auto end = std::chrono::steady_clock::now() + patience;
    for (int rank = 0; rank < ranks; ++rank) {
      while (rank != but && !fs::exists(folder_ / (name + "." + std::to_string(rank)))) {
        if (std::chrono::steady_clock::now() > end) {
          throw std::runtime_error{"there is no file \"" + name + "\" of rank " + std::to_string(rank) + " after " +
                                   std::to_string(patience.count()) + " s; the launcher " +
                                   (ended() ? "has ended" : "is running") + ". Its output:\n" + read(folder_ / "log")};
        }
        std::this_thread::sleep_for(std::chrono::milliseconds{2});
      }
    }
  }

 private:
  fs::path folder_;
  pid_t launcher_ = 0;
  bool ended_ = false;
};

/// Sends one rank the signal. Returns how many survivors have said something wrong.
int lose_a_rank(const std::vector<std::string>& launch, const std::string& self, int victim, int signal) {
  std::string pattern = (fs::temp_directory_path() / "orrery-killed-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error{"mkdtemp failed for " + pattern};
  const fs::path folder = pattern;
  std::vector<std::string> command = launch;
  for (const std::string& one : {self, std::string{"--rank"}, folder.string()}) command.push_back(one);
  job started{command, folder};
  started.wait_for("running", std::chrono::seconds{60});
  const auto before = std::chrono::steady_clock::now();
  if (kill(started.process(victim), signal) != 0) throw std::runtime_error{"the signal could not be sent"};
  started.wait_for("sentence", std::chrono::seconds{20}, victim);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - before;
  std::printf("rank %d %s: all survivors have ended after %.2f s, deadline %.1f s\n", victim,
              signal == SIGKILL ? "killed" : "stopped", took.count(), deadline);

  int wrong = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    if (rank == victim) continue;
    const std::string me = std::to_string(rank);
    const std::string both = read(folder / ("sentence." + me));
    const std::string first = both.substr(0, both.find('\n'));
    const std::string again = both.substr(both.find('\n') + 1);
    const auto says = [&](const std::string& what) { return std::regex_search(first, std::regex{what}); };
    const bool right =
        says("^orrery: rank " + me + " stops: ") && says("in step [0-9]+ for .*(query|key) shard [0-9]") &&
        says("; rank " + std::to_string(victim) + " does not answer: it is late, stands still or has died") &&
        says("this world and its communicator cannot be used any more$") && again == first;
    std::printf("  %s%s\n", right ? "" : "WRONG: ", first.c_str());
    if (again != first) std::printf("  WRONG: called again: %s\n", again.c_str());
    wrong += right ? 0 : 1;
  }
  return wrong;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string{argv[1]} == "--rank") return be_a_rank(argv[2], &argc, &argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MPIRUN NUMBER-FLAG\n", argv[0]);
    return 2;
  }
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(version, &length);
  // Else the launcher ends all ranks when one has died.
  const bool recovers = std::string{version}.find("Open MPI") != std::string::npos;
  std::vector<std::string> launch{argv[1], argv[2], std::to_string(ranks)};
  if (recovers) launch.insert(launch.begin() + 1, "--enable-recovery");
  int wrong = 0;
  try {
    const std::string self = fs::absolute(argv[0]).string();
    wrong = lose_a_rank(launch, self, 0, SIGSTOP);
    if (recovers) {
      wrong += lose_a_rank(launch, self, 2, SIGKILL);
    } else {
      std::printf("not tested with this MPI library: a rank that is killed; its launcher then ends all others\n");
    }
  } catch (const std::exception& e) {
    std::printf("%s\n", e.what());
    return 1;
  }
  return wrong == 0 ? 0 : 1;
}
