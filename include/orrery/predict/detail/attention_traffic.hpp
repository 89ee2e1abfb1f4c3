// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "orrery/attention/shape.hpp"
#include "orrery/attention/sizes.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/split_by_tensor.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery {

/// What `attention::traffic` tells.
struct operator_traffic : byte_report {
  /// What became of the topology's schedule: written for all pairs of shards, pruned to those that the mask lets be
  /// seen, or why it was not.
  std::string schedule;
};

}  // namespace orrery

namespace orrery::detail {

/// The bytes that an attention operator's calls move, computed when asked, from the programs of all ranks.
class attention_traffic {
 public:
  attention_traffic() = default;
  /// `programs` writes the finished programs of all ranks for a pass, and `note` says what they are. `shape` is
  /// completed.
  attention_traffic(std::function<list<program>(pass)> programs, std::function<std::string(pass)> note,
                    const attention_shape& shape, attention_sizes sizes)
      : programs_{std::move(programs)},
        note_{std::move(note)},
        shape_{shape},
        sizes_{std::make_shared<const attention_sizes>(std::move(sizes))} {}

  /// Throws `std::invalid_argument` for a pass that the operator does not have.
  [[nodiscard]] operator_traffic operator()(pass p) const {
    if (p != pass::forward && shape_.forward_only) {
      throw std::invalid_argument{"orrery: attention::traffic: pass is " + std::string{name_of(p)} +
                                  ", but this operator is forward_only; ask for pass::forward, or construct it without "
                                  "forward_only in its shape"};
    }
    if (p != pass::forward && p != shape_.circulate) {
      const std::string backward = name_of(shape_.circulate);
      throw std::invalid_argument{"orrery: attention::traffic: pass is " + std::string{name_of(p)} +
                                  ", but this operator's backward is " + backward + "; ask for pass::" + backward +
                                  ", or construct it with .circulate = pass::" + name_of(p) + " in its shape"};
    }
    const list<program> programs = programs_(p);
    operator_traffic report{traffic(programs, sizes_->in_pass(p)), note_(p)};
    if (p == pass::forward && shape_.operand_messages == operand_messages::per_tensor) recount(report, programs);
    return report;
  }

 private:
  /// Counts messages where some carry one tensor each. They carry the same bytes.
  static void recount(byte_report& report, const list<program>& programs) {
    report.messages_sent = report.messages_received = 0;
    for (const program& p : programs) {
      std::int64_t sent = 0, received = 0;
      for (const exchange& x : split_by_tensor(p, attention_sizes::forward_tensors).exchanges) {
        sent += x.sent.count > 0 ? 1 : 0;
        received += x.received.count > 0 ? 1 : 0;
      }
      report.ranks[p.rank].messages_sent = sent;
      report.ranks[p.rank].messages_received = received;
      raise(report.messages_sent, sent);
      raise(report.messages_received, received);
    }
  }

  std::function<list<program>(pass)> programs_;
  std::function<std::string(pass)> note_;
  attention_shape shape_;
  std::shared_ptr<const attention_sizes> sizes_;
};

}  // namespace orrery::detail
