// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include <mpi.h>

#include "orrery/transport/mpi_memory.hpp"

namespace orrery::mpi {

/// Short texts that any rank of a communicator may write to any other at any time, under a tag that nothing else has.
/// Nobody waits for one: they are read when somebody looks, and those that never are do no harm.
class letters {
 public:
  static constexpr int tag = 0;
  static constexpr std::size_t longest = 2048;  // in bytes; what is longer is cut

  /// What a letter is about: its first byte.
  enum class kind : char { notice = '!', question = '?', answer = '=' };

  struct letter {
    int from = 0;
    letters::kind kind = letters::kind::notice;
    std::string text;
  };

  letters() = default;
  letters(const letters&) = delete;
  letters& operator=(const letters&) = delete;
  ~letters() { given_up().insert(given_up().end(), on_their_way_.begin(), on_their_way_.end()); }

  /// A letter that cannot be sent, since the other has died, is as good as one that is not read.
  void send(MPI_Comm over, int to, kind about, const std::string& text) {
    std::erase_if(on_their_way_, [](const std::shared_ptr<sent>& one) {
      int done = 0;
      return MPI_Test(&one->request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done != 0;
    });
    const auto& one = on_their_way_.emplace_back(std::make_shared<sent>());
    one->text = (static_cast<char>(about) + text).substr(0, longest);
    static_cast<void>(
        MPI_Isend(one->text.data(), static_cast<int>(one->text.size()), MPI_CHAR, to, tag, over, &one->request));
  }

  /// Takes a letter, if one has come; allocates only then. `check(code, call)` is called with what MPI's calls return.
  template <class Check>
  [[nodiscard]] static bool take(MPI_Comm over, letter& into, const Check& check) {
    int found = 0;
    MPI_Status status;
    check(MPI_Iprobe(MPI_ANY_SOURCE, tag, over, &found, &status), "MPI_Iprobe");
    if (found == 0) return false;
    into.from = status.MPI_SOURCE;
    char read[longest];
    int length = 0;
    check(MPI_Recv(read, static_cast<int>(longest), MPI_CHAR, into.from, tag, over, &status), "MPI_Recv");
    check(MPI_Get_count(&status, MPI_CHAR, &length), "MPI_Get_count");
    into.kind = static_cast<letters::kind>(read[0]);
    into.text.assign(read + 1, static_cast<std::size_t>(length) - 1);
    return true;
  }

 private:
  struct sent {
    std::string text;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  std::vector<std::shared_ptr<sent>> on_their_way_;
};

}  // namespace orrery::mpi
