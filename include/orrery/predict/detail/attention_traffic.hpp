// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "orrery/attention/calls.hpp"
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

/// Throws `std::invalid_argument` for a pass that an operator of this shape, which is completed, does not have.
inline void require_pass(const attention_shape& shape, pass p) {
  if (p != pass::forward && shape.forward_only) {
    throw std::invalid_argument{"orrery: attention::traffic: pass is " + std::string{name_of(p)} +
                                ", but this operator is forward_only; ask for pass::forward, or construct it without "
                                "forward_only in its shape"};
  }
  if (p != pass::forward && p != shape.circulate) {
    const std::string backward = name_of(shape.circulate);
    throw std::invalid_argument{"orrery: attention::traffic: pass is " + std::string{name_of(p)} +
                                ", but this operator's backward is " + backward + "; ask for pass::" + backward +
                                ", or construct it with .circulate = pass::" + name_of(p) + " in its shape"};
  }
}

/// Counts messages where some carry one tensor each. They carry the same bytes.
inline void recount_messages(byte_report& report, const list<program>& programs) {
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

/// The bytes that calls of an operator of this shape, which is completed, move in one pass that it has.
[[nodiscard]] inline operator_traffic attention_traffic(const attention_shape& shape, const planned_pass& of, pass p) {
  operator_traffic report{traffic(of.programs, of.sizes.in_pass(p)), of.note};
  if (p == pass::forward && shape.operand_messages == operand_messages::per_tensor)
    recount_messages(report, of.programs);
  return report;
}

}  // namespace orrery::detail
