// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Processes that are killed, or stopped, in the middle of a call or while an operator is made: every survivor ends in a
// message. This program is both sides of the test: it starts `mpirun ... test_mpi_killed --rank FOLDER WHERE`, and
// sends a signal to one of the ranks that it has started; or WHERE names a collective call of MPI, before which one
// rank stops itself. It ends all of them by their process numbers, whatever happens.
//
//     test_mpi_killed MPIRUN -n                               what ctest runs
//     mpirun ... test_mpi_killed --static                     worlds and operators that outlive MPI_Finalize
//     test_mpi_killed MPIRUN -n MPI_Comm_create_group 1       a stop before the first such call, and nothing else
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
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
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/mpi.hpp"

#include "support/conformance.hpp"
#include "support/flash_steps.hpp"

// Before which call this rank stops itself: 0 calls of that name are left then. Seen through MPI's profiling interface.
static std::string stops_before;
static int calls_left = 0;

static void come_to(const char* call) {
  if (stops_before == call && --calls_left == 0) raise(SIGSTOP);
}

extern "C" int MPI_Comm_idup(MPI_Comm of, MPI_Comm* made, MPI_Request* request) {
  come_to("MPI_Comm_idup");
  return PMPI_Comm_idup(of, made, request);
}
extern "C" int MPI_Comm_create_group(MPI_Comm of, MPI_Group members, int tag, MPI_Comm* made) {
  come_to("MPI_Comm_create_group");
  return PMPI_Comm_create_group(of, members, tag, made);
}
extern "C" int MPI_Iallgather(const void* sent, int count, MPI_Datatype type, void* received, int counts,
                              MPI_Datatype types, MPI_Comm among, MPI_Request* request) {
  come_to("MPI_Iallgather");
  return PMPI_Iallgather(sent, count, type, received, counts, types, among, request);
}
extern "C" int MPI_Iallgatherv(const void* sent, int count, MPI_Datatype type, void* received, const int* counts,
                               const int* offsets, MPI_Datatype types, MPI_Comm among, MPI_Request* request) {
  come_to("MPI_Iallgatherv");
  return PMPI_Iallgatherv(sent, count, type, received, counts, offsets, types, among, request);
}
extern "C" int MPI_Ialltoall(const void* sent, int count, MPI_Datatype type, void* received, int counts,
                             MPI_Datatype types, MPI_Comm among, MPI_Request* request) {
  come_to("MPI_Ialltoall");
  return PMPI_Ialltoall(sent, count, type, received, counts, types, among, request);
}

namespace {

namespace fs = std::filesystem;
using kernel = orrery::flash<double>;

constexpr int ranks = 4;
constexpr double deadline = 2.5;
constexpr double short_deadline = 2;
constexpr int victim_of_construction = 2;

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

/// Makes a world and an operator with communicators of groups. The victim stops itself before a call of MPI; the others
/// write down what they are told, twice.
int be_a_rank_that_stops(const fs::path& folder, const std::string& call, int which, int* argc, char*** argv) {
  alarm(120);
  int level = MPI_THREAD_SINGLE;
  MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &level);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const std::string me = std::to_string(rank);
  write(folder / ("pid." + me), std::to_string(getpid()));
  if (rank == victim_of_construction) {
    stops_before = call;
    calls_left = which;
  }
  std::string first = "nothing", again = "nothing";
  try {
    orrery::mpi::world world{MPI_COMM_WORLD,
                             {.deadline = short_deadline, .collectives = orrery::mpi::collectives::native}};
    try {
      const orrery::attention<orrery::concentric<2>, kernel> attend{world,
                                                                    {.length = 64, .query_heads = 2, .head_dim = 8}};
      world.barrier();  // members of another group may have theirs
      write(folder / ("message." + me), "not stopped");
      _exit(0);
    } catch (const orrery::transport_error& e) {
      first = e.what();
    }
    try {
      world.barrier();
    } catch (const orrery::transport_error& e) {
      again = e.what();
    }
    write(folder / ("message." + me), first + "\n" + again);
    _exit(0);
  } catch (const orrery::transport_error& e) {  // of the world
    write(folder / ("message." + me), std::string{e.what()} + "\n" + e.what());
  }
  _exit(0);
}

/// Calls the operator until a call fails, writes down its message, and that of one more call.
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
  conformance::rank_tensors<kernel> local{p, attend.query_positions(), attend.key_positions(), {}};
  const auto message = [&](int calls) -> std::string {
    try {
      for (int call = 0; call < calls; ++call) {
        local.forward(attend);
        local.backward(attend);
        if (call == 3) write(folder / ("running." + me), "");
      }
    } catch (const orrery::transport_error& e) {
      return e.what();
    }
    return "nothing";
  };
  const std::string first = message(1 << 30);
  const std::string again = world.usable() ? "it says that it can be used" : message(1);
  write(folder / ("message." + me), first + "\n" + again);
  _exit(0);  // a world that has lost a rank cannot be finalised
}

/// A world, and an operator on it.
struct world_and_operator {
  orrery::mpi::world world;
  orrery::attention<orrery::ring, kernel> attend;

  explicit world_and_operator(const orrery::attention_shape& shape)
      : world{MPI_COMM_WORLD, {.deadline = 60, .threads_per_rank = 2}}, attend{world, shape} {}
};

// Made before anything that a world makes, so destroyed after it.
std::optional<world_and_operator> healthy, failed;

/// Worlds and operators in static variables, one of them after a failed call with messages under way. After
/// MPI_Finalize they refuse calls, and do not call MPI when they are destroyed: MPI would end the job.
int outlive_mpi(int* argc, char*** argv) {
  int level = MPI_THREAD_SINGLE;
  MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level);
  // Large enough that a message waits for its receiver.
  const orrery::attention_shape shape{.length = 4096, .query_heads = 1, .head_dim = 32};
  healthy.emplace(shape);
  failed.emplace(shape);
  const std::int64_t tokens = failed->attend.query_positions().size();
  std::vector<double> memory(static_cast<std::size_t>(4 * tokens * 32 + tokens));
  const auto tensor = [&](std::int64_t i) {
    return orrery::batch_sequence_head_dim(memory.data() + i * tokens * 32, 1, tokens, 1, 32);
  };
  const auto lse = orrery::batch_head_sequence(memory.data() + 4 * tokens * 32, 1, 1, tokens);
  const auto message = [&](world_and_operator& of) -> std::string {
    try {
      of.attend.forward(tensor(0), tensor(1), tensor(2), tensor(3), lse);
    } catch (const std::exception& e) {
      return e.what();
    }
    return "nothing";
  };
  int wrong = 0;
  const auto expect = [&](const std::string& said, const std::string& part) {
    if (said.find(part) != std::string::npos) return;
    std::printf("WRONG: expected \"%s\", but the message is \"%s\"\n", part.c_str(), said.c_str());
    ++wrong;
  };
  expect(message(*healthy), "nothing");
  expect(message(*failed), "nothing");
  if (failed->world.rank() == 0) {
    auto call = failed->attend.begin_forward(tensor(3), lse);
    call.queries(tensor(0));
    call.keys(tensor(1));
    call.values(tensor(2));  // its messages leave, and the call is given up
  } else {
    while (failed->world.usable()) {}
  }
  expect(message(*failed), "its forward was begun, but not finished");
  if (wrong == 0) MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
  expect(message(*failed), "its forward was begun, but not finished");
  expect(message(*healthy), "called after MPI_Finalize");
  try {
    healthy->world.barrier();
    ++wrong;
  } catch (const std::logic_error& e) {
    expect(e.what(), "called after MPI_Finalize");
  }
  if (!healthy->world.usable()) ++wrong;
  return wrong == 0 ? 0 : 1;
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

/// A job in a folder of its own.
struct job_in_folder {
  fs::path folder;
  std::unique_ptr<job> started;

  job_in_folder(const std::vector<std::string>& launch, const std::vector<std::string>& arguments) {
    std::string pattern = (fs::temp_directory_path() / "orrery-killed-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error{"mkdtemp failed for " + pattern};
    folder = pattern;
    std::vector<std::string> command = launch;
    for (const std::string& one : arguments) command.push_back(one == "FOLDER" ? folder.string() : one);
    started = std::make_unique<job>(command, folder);
  }
};

/// How many survivors have said something else than these.
int count_wrong(const fs::path& folder, int victim, const std::vector<std::string>& expected) {
  int wrong = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    if (rank == victim) continue;
    const std::string me = std::to_string(rank);
    const std::string both = read(folder / ("message." + me));
    const std::string first = both.substr(0, both.find('\n'));
    const std::string again = both.substr(both.find('\n') + 1);
    bool right = again == first && std::regex_search(first, std::regex{"^orrery: rank " + me + " stops: "}) &&
                 std::regex_search(first, std::regex{"this world and its communicator cannot be used any more$"});
    for (const std::string& what : expected) right = right && std::regex_search(first, std::regex{what});
    std::printf("  %s%s\n", right ? "" : "WRONG: ", first.c_str());
    if (again != first) std::printf("  WRONG: called again: %s\n", again.c_str());
    wrong += right ? 0 : 1;
  }
  return wrong;
}

std::string does_not_answer(int victim) {
  return "; rank " + std::to_string(victim) + " does not answer: it is late, stopped or dead";
}

/// Sends one rank the signal. Returns how many survivors have said something wrong.
int lose_a_rank(const std::vector<std::string>& launch, const std::string& self, int victim, int signal) {
  const job_in_folder of{launch, {self, "--rank", "FOLDER"}};
  of.started->wait_for("running", std::chrono::seconds{60});
  const auto before = std::chrono::steady_clock::now();
  if (kill(of.started->process(victim), signal) != 0) throw std::runtime_error{"the signal could not be sent"};
  of.started->wait_for("message", std::chrono::seconds{20}, victim);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - before;
  std::printf("rank %d %s: all survivors have ended after %.2f s, deadline %.1f s\n", victim,
              signal == SIGKILL ? "killed" : "stopped", took.count(), deadline);
  return count_wrong(of.folder, victim, {"in step [0-9]+ for .*(query|key) shard [0-9]", does_not_answer(victim)});
}

/// A rank stops before its call number `which` of an MPI function. Returns how many survivors have said something
/// wrong.
int stop_before(const std::vector<std::string>& launch, const std::string& self, const std::string& call, int which) {
  constexpr int victim = victim_of_construction;
  const job_in_folder of{launch, {self, "--rank", "FOLDER", call, std::to_string(which)}};
  of.started->wait_for("message", std::chrono::seconds{60}, victim);
  std::printf("rank %d stopped before call %d of %s: all survivors have ended\n", victim, which, call.c_str());
  // The world's own communicator is made before ranks can ask each other who is late.
  return count_wrong(of.folder, victim,
                     {call == "MPI_Comm_idup" ? "for all ranks to make the same world" : does_not_answer(victim)});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string{argv[1]} == "--static") return outlive_mpi(&argc, &argv);
  if (argc > 1 && std::string{argv[1]} == "--rank") {
    if (argc == 5) return be_a_rank_that_stops(argv[2], argv[3], std::stoi(argv[4]), &argc, &argv);
    return be_a_rank(argv[2], &argc, &argv);
  }
  if (argc != 3 && argc != 5) {
    std::fprintf(stderr, "usage: %s MPIRUN NUMBER-FLAG [CALL NUMBER]\n", argv[0]);
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
    if (argc == 5) return stop_before(launch, self, argv[3], std::stoi(argv[4])) == 0 ? 0 : 1;
    wrong = lose_a_rank(launch, self, 0, SIGSTOP);
    wrong += stop_before(launch, self, "MPI_Comm_idup", 1);
    wrong += stop_before(launch, self, "MPI_Iallgather", 1);
    wrong += stop_before(launch, self, "MPI_Iallgatherv", 2);
    wrong += stop_before(launch, self, "MPI_Ialltoall", 1);
    wrong += stop_before(launch, self, "MPI_Comm_create_group", 1);
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
