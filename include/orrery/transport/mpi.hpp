// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <mpi.h>

#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/mpi/channel.hpp"
#include "orrery/transport/mpi/communicator.hpp"
#include "orrery/transport/mpi/memory.hpp"
#include "orrery/transport/mpi_options.hpp"
#include "orrery/transport/transport.hpp"

/// Ranks that are processes of an MPI job.
namespace orrery::mpi {

/// One rank of an MPI job, or of any part of it. See `transport`.
///
///     orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 30}};
///     orrery::attention<orrery::wallfacer<2>, orrery::flash<float>> attend{world, shape, orrery::causal{}};
///
/// The communicator is duplicated, so that the library's messages never match the trainer's. It may be freed before the
/// world and its operators.
///
/// Threads: the thread level of MPI decides which threads may use the world and its operators. Under MPI_THREAD_SINGLE
/// and MPI_THREAD_FUNNELED only the thread that initialised MPI may. Under MPI_THREAD_SERIALIZED and
/// MPI_THREAD_MULTIPLE any thread may, for example the main thread for the forward and an autograd thread for the
/// backward. Only one thread may call at a time: a call is refused while another thread is in a call of this world, or
/// has begun a forward and not finished it. All ranks make the same calls in the same order, on whatever threads. A
/// refused call throws `std::logic_error` and changes nothing (but a refused construction fails the world). Under
/// MPI_THREAD_SERIALIZED the trainer must not call MPI at the same time. The helpers of `threads_per_rank` never call
/// MPI; they need MPI_THREAD_FUNNELED.
///
/// Cost: an exchange is one message each way, for any number of blocks. While a tile is computed, MPI is called every
/// `progress_interval`.
///
/// Collectives that programs mark are sent message by message, or by one non-blocking call of MPI on a communicator of
/// their group (see `options::collectives`): MPI_Iallgatherv if every rank sends one block, else MPI_Ialltoallw. Both
/// send the same bytes between the same places and give the same bits. A rank that waits for such a call cannot know
/// which of its peers is late, so its message names all of them. MPI makes a communicator of some of the ranks in a
/// call that has no deadline. So a separate thread makes it, which needs MPI_THREAD_MULTIPLE; with a lower level,
/// collectives of such groups are sent message by message.
///
/// All members but `rank`, `size`, `usable` and `abandon` are collective. They throw `transport_error`
///
/// - if an MPI call fails, with its name;
/// - if a rank does not come before the deadline, with what was waited for and which rank is late;
/// - if another rank has failed, with its message;
/// - if ranks make different collective calls, with who calls what. Ranks first compare the kind and number of the
///   call, and the type and count of its values. If only the type or count differs, all ranks throw
///   `std::invalid_argument`, and the world can still be used.
///
/// A rank that throws during a collective call or a construction (`std::bad_alloc`, for example) fails the world: the
/// others throw at once, with its name and the reason, even if that rank continues. After a failure this world cannot
/// be used any more, and messages that nobody receives may be left in it: end the job (MPI_Abort), or continue without
/// this world. Communications that cannot be cancelled, such as collectives, continue in memory that is kept until the
/// process ends.
///
/// Worlds and operators may be destroyed after MPI_Finalize, for example in static variables; their destructors then do
/// not call MPI. Any other call then throws `std::logic_error`.
///
/// When a process has died or been stopped, the others throw after the deadline. MPI itself guarantees nothing from
/// then on. Everything that waits for the dead rank hangs: MPI_Finalize, every collective call on the trainer's own
/// communicators, and possibly the thread that makes a communicator. Log the message, and leave by MPI_Abort or _exit.
/// The message does not name a rank that is lost while the world itself is made. A new world of the survivors is
/// possible only if the MPI library has fault tolerance (MPIX_Comm_shrink) and was started with it. Most launchers kill
/// all ranks as soon as one has died, so that survivors have no time for a message. OpenMPI's launcher does not with
/// `mpirun --enable-recovery` (4.1.4); that of MPICH 4.0.2 does, even with `-disable-auto-cleanup`.
class world {
 public:
  using memory = mpi::memory;

  /// Collective. Throws `std::invalid_argument` if MPI is not initialised, for a communicator that is null or an
  /// intercommunicator, for invalid options, and for more threads than the thread level of MPI allows.
  explicit world(MPI_Comm parent, const options& options = {})
      : own_{std::make_shared<communicator>(parent, options)}, exceptions_{std::uncaught_exceptions()} {}
  world(const world&) = delete;
  world& operator=(const world&) = delete;
  /// Collective, except on a rank that leaves by an exception: the others then fail at their next wait, with its name.
  ~world() {
    if (std::uncaught_exceptions() <= exceptions_ || own_->failed()) return;
    own_->give_notice("has ended by an exception");
  }

  [[nodiscard]] int rank() const noexcept { return own_->rank(); }
  [[nodiscard]] int size() const noexcept { return own_->size(); }

  /// Returns false after a failure of this rank, or one that another rank has reported. From then on every other member
  /// throws its message. Not collective, for any thread. Receives such a report, once, if this thread may call MPI and
  /// no other thread is in a call.
  [[nodiscard]] bool usable() { return own_->usable(); }

  /// Returns when all ranks have called it.
  void barrier() { own_->barrier(); }

  /// Returns the texts of all ranks. `call` is the kind that the ranks' signatures are compared by. Throws
  /// `std::length_error` on all ranks if the texts have more than 2 GiB together.
  [[nodiscard]] std::vector<std::string> all_gather(
      const std::string& text, detail::collective_call call = detail::collective_call::all_gather) {
    return own_->all_gather(text, call);
  }

  /// Gives up: the other ranks fail at once with "rank 2 failed " and `why`. Not collective. If the calling thread may
  /// not call MPI, the others learn it when a thread that may uses this world.
  void abandon(const std::string& why) noexcept { own_->give_notice("failed ", why); }

  /// Replaces the values of all ranks by their sums, added in the order of the ranks, so that every rank gets the same
  /// bits. Throws `std::invalid_argument` on every rank if ranks pass different counts or types. Each rank adds one
  /// part of the values. Sends 2 (P - 1) / P of the bytes, and allocates up to 16 MiB temporarily.
  template <class T, std::size_t extent>
  void all_reduce_sum(std::span<T, extent> given) {
    const std::span<T> values = given;
    static_assert(std::is_trivially_copyable_v<T>, "orrery: all_reduce_sum: the values are sent as bytes");
    constexpr std::size_t most = (std::size_t{8} << 20) / sizeof(T);
    const communicator::presence here = own_->enter();
    own_->collective("at an all_reduce_sum", [&] {
      own_->meet(detail::collective_signature::sum<T>(values.size()));
      for (std::size_t at = 0; at < values.size(); at += most) {
        sum_part(values.subspan(at, (std::min)(most, values.size() - at)));
      }
    });
  }

  /// Opens a plan. Costs four small collective calls, and one persistent request for each side of each exchange. With
  /// native collectives, the first plan with a group also makes its communicator (see `communicator::make_groups`).
  /// Throws `transport_error` on all ranks if a rank sends what its peer does not expect.
  [[nodiscard]] channel open(const schedule::program& p, std::vector<exchange_pieces> pieces) {
    const communicator::presence here = own_->enter();
    return own_->collective("while it opened a plan", [&] {
      own_->meet({detail::collective_call::open});
      own_->start_team();
      return channel{own_, p, std::move(pieces)};
    });
  }

 private:
  template <class T>
  void sum_part(std::span<T> values) {
    struct buffers {
      std::vector<std::byte> local, of_all, sums;
      std::vector<int> send_counts, send_offsets, counts, offsets;
    };
    const auto ranks = static_cast<std::size_t>(size());
    const auto kept = communicator::retain<buffers>();
    const auto bytes_before = [&](std::size_t r) { return static_cast<int>(values.size() * r / ranks * sizeof(T)); };
    const auto me = static_cast<std::size_t>(rank());
    const int part = bytes_before(me + 1) - bytes_before(me);
    const auto part_size = static_cast<std::size_t>(part);
    for (std::size_t r = 0; r < ranks; ++r) {
      kept->send_offsets.push_back(bytes_before(r));
      kept->send_counts.push_back(bytes_before(r + 1) - bytes_before(r));
      kept->offsets.push_back(part * static_cast<int>(r));
      kept->counts.push_back(part);
    }
    kept->local.resize(values.size_bytes());
    std::memcpy(kept->local.data(), values.data(), values.size_bytes());
    kept->of_all.resize(part_size * ranks);
    MPI_Request request = MPI_REQUEST_NULL;
    own_->check(
        MPI_Ialltoallv(kept->local.data(), kept->send_counts.data(), kept->send_offsets.data(), MPI_BYTE,
                       kept->of_all.data(), kept->counts.data(), kept->offsets.data(), MPI_BYTE, own_->get(), &request),
        "MPI_Ialltoallv", communicator::nothing);
    own_->wait_for_all(request, "MPI_Ialltoallv");

    kept->sums.resize(part_size);
    for (std::size_t at = 0; at < part_size; at += sizeof(T)) {
      T sum{};
      for (std::size_t r = 0; r < ranks; ++r) {
        T value;
        std::memcpy(&value, kept->of_all.data() + r * part_size + at, sizeof(T));
        sum += value;
      }
      std::memcpy(kept->sums.data() + at, &sum, sizeof(T));
    }
    own_->check(MPI_Iallgatherv(kept->sums.data(), part, MPI_BYTE, kept->local.data(), kept->send_counts.data(),
                                kept->send_offsets.data(), MPI_BYTE, own_->get(), &request),
                "MPI_Iallgatherv", communicator::nothing);
    own_->wait_for_all(request, "MPI_Iallgatherv");
    std::memcpy(values.data(), kept->local.data(), values.size_bytes());
    communicator::release(kept);
  }

  std::shared_ptr<communicator> own_;
  int exceptions_;
};

static_assert(transport<world>);

}  // namespace orrery::mpi
