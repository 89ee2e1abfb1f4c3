// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <mpi.h>

#include "orrery/transport/mpi/memory.hpp"

namespace orrery::mpi {

/// Short texts that any rank of a communicator may send to any other at any time, under a tag that nothing else uses.
/// No rank waits for one: they are received when a rank polls. One that is never received does no harm.
class control_messages {
 public:
  static constexpr int tag = 0;
  static constexpr std::size_t longest = 2048;  // in bytes; longer texts are cut

  /// The kind of a message: its first byte.
  enum class kind : char { notice = '!', question = '?', answer = '=' };

  struct message {
    int from = 0;
    control_messages::kind kind = control_messages::kind::notice;
    std::string text;
  };

  /// Allocates the memory for notices to `ranks` ranks in advance: they may have to be sent when memory has run out.
  explicit control_messages(int ranks) : notices_{std::make_unique<notices>()} {
    notices_->text.reserve(longest);
    notices_->requests.assign(static_cast<std::size_t>(ranks), MPI_REQUEST_NULL);
  }
  control_messages(const control_messages&) = delete;
  control_messages& operator=(const control_messages&) = delete;
  ~control_messages() {
    for (std::unique_ptr<sent>& outgoing : in_flight_) abandoned_buffers::all().retain_forever(std::move(outgoing));
    if (!notices_->text.empty()) abandoned_buffers::all().retain_forever(std::move(notices_));
  }

  /// Sends a question or an answer. Failures are ignored: if the peer has died, it would not read the message anyway.
  void send(MPI_Comm over, int to, kind about, const std::string& text) {
    std::erase_if(in_flight_, [](const std::unique_ptr<sent>& outgoing) {
      int done = 0;
      return MPI_Test(&outgoing->request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done != 0;
    });
    const auto& outgoing = in_flight_.emplace_back(std::make_unique<sent>());
    outgoing->text = (static_cast<char>(about) + text).substr(0, longest);
    static_cast<void>(MPI_Isend(outgoing->text.data(), static_cast<int>(outgoing->text.size()), MPI_CHAR, to, tag, over,
                                &outgoing->request));
  }

  /// Sends a notice to all ranks but `rank`. Only the first call sends. Allocates nothing.
  void send_notice(MPI_Comm over, int rank, std::string_view text) noexcept {
    std::string& all = notices_->text;
    if (!all.empty()) return;
    all.push_back(static_cast<char>(kind::notice));
    all.append(text.substr(0, longest - 1));
    for (int to = 0; to < static_cast<int>(notices_->requests.size()); ++to) {
      if (to == rank) continue;
      static_cast<void>(MPI_Isend(all.data(), static_cast<int>(all.size()), MPI_CHAR, to, tag, over,
                                  &notices_->requests[static_cast<std::size_t>(to)]));
    }
  }

  /// Receives a message, if one has arrived. Allocates only then. Calls `check(code, call)` with the results of MPI
  /// calls, and `refuse(rank, what)`, which must throw, for a message that no rank of this library sends.
  template <class Check, class Refuse>
  [[nodiscard]] static bool take(MPI_Comm over, message& into, const Check& check, const Refuse& refuse) {
    int found = 0;
    MPI_Status status;
    check(MPI_Iprobe(MPI_ANY_SOURCE, tag, over, &found, &status), "MPI_Iprobe");
    if (found == 0) return false;
    into.from = status.MPI_SOURCE;
    int length = 0;
    check(MPI_Get_count(&status, MPI_CHAR, &length), "MPI_Get_count");
    if (length < 1 || length > static_cast<int>(longest)) {
      refuse(into.from, "of " + (length == MPI_UNDEFINED ? "an unknown number of" : std::to_string(length)) +
                            " bytes, expected 1 to " + std::to_string(longest));
    }
    char read[longest];
    check(MPI_Recv(read, length, MPI_CHAR, into.from, tag, over, &status), "MPI_Recv");
    into.kind = static_cast<control_messages::kind>(read[0]);
    if (into.kind != kind::notice && into.kind != kind::question && into.kind != kind::answer) {
      refuse(into.from, "of the unknown kind " + std::to_string(static_cast<unsigned char>(read[0])));
    }
    into.text.assign(read + 1, static_cast<std::size_t>(length) - 1);
    return true;
  }

 private:
  struct sent {
    std::string text;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  struct notices {
    std::string text;
    std::vector<MPI_Request> requests;
  };

  std::vector<std::unique_ptr<sent>> in_flight_;
  std::unique_ptr<notices> notices_;
};

}  // namespace orrery::mpi
