// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The same as topology.cpp, with ranks that are processes: started by mpirun, which says how many there are. Times are
// taken from a clock that all processes of one machine share, so run it on one machine (see cluster.py). One more flag:
// --collectives expanded or native, see orrery::mpi::options.
#include "orrery/transport/mpi.hpp"

#include "topology/host_ranks.hpp"
#include "topology/run.hpp"

namespace {

class process_ranks : public bench::host_ranks {
 public:
  static constexpr const char* transport = "mpi";
  static constexpr const char* described = "processes of an MPI job";

  explicit process_ranks(orrery::mpi::world& world) : world_{&world} {}

  [[nodiscard]] int count() const { return world_->size(); }
  [[nodiscard]] bool first() const { return world_->rank() == 0; }
  template <class Body>
  void run(int, const Body& body) const {
    body(*world_);
  }

 private:
  orrery::mpi::world* world_;
};

int run(const std::vector<std::string>& arguments) {
  auto collectives = orrery::mpi::options{}.collectives;
  std::vector<std::string> others;
  try {
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      if (arguments[i] != "--collectives") {
        others.push_back(arguments[i]);
        continue;
      }
      const std::string value = ++i < arguments.size() ? arguments[i] : "";
      const std::vector<std::string> choices{"expanded", "native"};
      const bool native = bench::flag_values::one_of("--collectives", value, choices) == "native";
      collectives = native ? orrery::mpi::collectives::native : orrery::mpi::collectives::expanded;
    }
  } catch (const std::invalid_argument& e) {
    std::cerr << "bench_topology_mpi: " << e.what() << '\n';
    return 2;
  }
  orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 300, .collectives = collectives}};
  return bench::run(process_ranks{world}, others);
}

}  // namespace

int main(int argc, char** argv) {
  int level = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);  // for native collectives of all groups
  try {
    const int result = run({argv + 1, argv + argc});
    MPI_Finalize();
    return result;
  } catch (const std::exception& e) {
    std::cerr << "bench_topology_mpi: " << e.what() << '\n';
    MPI_Abort(MPI_COMM_WORLD, 1);
    return 1;
  }
}
