// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>
#include <string>
#include <vector>

#include <nccl.h>

/// A double of NCCL for ranks that are threads of one process, on streams of the runtime double: it records the calls,
/// and moves the data.
///
/// It is as strict as NCCL may be. The operations of a group wait for each other, and block their stream until each has
/// met its counterpart on the other rank's stream; the k-th send between two ranks of a communicator meets the k-th
/// receive, in one size. No call blocks but those on communicators that are made so: communicators are under way, and
/// not written to where they were asked for, until all of their ranks have asked for them, and a call is enqueued when
/// its communicator is next asked for its state, by the thread that made it, but not before the ranks that it meets for
/// the first time, and those that the other calls of its group do, have come to theirs; until then the rank gives it no
/// others. Calls that a graph holds meet again when it is launched.
///
/// An abort ends the communicator's work at once. Then it, as a destruction, waits for all work of the device, and
/// until no graph holds calls of the communicator; inside a group, at the end of the group. That takes 5 s at most, and
/// is then a fault.
namespace nccl_double {

/// Forgets all calls and failures to come. There must be no communicators.
void reset();
/// The n-th call (from 1, counted from now on) of a function by any rank returns this, and leaves these words.
void fail(const std::string& function, int nth, ncclResult_t result, const std::string& words = "");
/// The priorities of the streams that calls were enqueued on, and what communicators that were split off had as
/// maxCTAs.
[[nodiscard]] std::set<int> priorities();
[[nodiscard]] std::set<int> max_ctas();
/// What ncclGetVersion says until the next `reset`.
void set_version(int version);
/// From now on all communicators of this rank of the first communicator say so when they are asked.
void set_async_error(int rank, ncclResult_t result);
/// The calls that move data, in the order of each rank: "group: send 64 to 1, receive 64 from 2", "all-gather 64".
[[nodiscard]] std::vector<std::string> calls_of(int rank);
[[nodiscard]] int calls(const std::string& function);
/// Has this rank given calls that are not enqueued yet?
[[nodiscard]] bool is_enqueuing(int rank);
/// Ends that do not fit, as messages, and communicators that were never destroyed.
[[nodiscard]] std::string faults();

}  // namespace nccl_double
