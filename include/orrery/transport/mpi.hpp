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

#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/mpi/channel.hpp"
#include "orrery/transport/mpi/communicator.hpp"
#include "orrery/transport/mpi/memory.hpp"
#include "orrery/transport/transport.hpp"

/// Ranks that are processes of an MPI job.
namespace orrery::mpi {

/// One rank of an MPI job, or of any part of it. See `transport`.
///
///     orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 30}};
///     orrery::attention<orrery::wallfacer<2>, orrery::flash<float>> attend{world, shape, orrery::causal{}};
///
/// The communicator is duplicated, so that no message is mistaken for one of the trainer's; it must outlive neither the
/// world nor its operators.
///
/// Threads: MPI's thread level decides who may use the world and its operators. Under MPI_THREAD_SINGLE and
/// MPI_THREAD_FUNNELED it is the thread that initialised MPI; under MPI_THREAD_SERIALIZED and MPI_THREAD_MULTIPLE any
/// thread, for example the main thread for the forward and an autograd thread for the backward. One thread calls at a
/// time: a call is refused while another thread is in a call of this world, or has begun a forward and not finished it.
/// All ranks make the same calls in one order, on whatever threads. A call that is refused throws `std::logic_error`
/// and changes nothing (but a construction that is refused fails the world). Under MPI_THREAD_SERIALIZED the trainer
/// must not call MPI meanwhile either. Helpers of `threads_per_rank` never call MPI; they take MPI_THREAD_FUNNELED.
///
/// An exchange costs one message each way, whatever number of blocks it holds. While a tile is computed, MPI is called
/// every `progress_interval`. Collectives that programs remark are sent message by message, or by one non-blocking call
/// of MPI on a communicator of their group (`options::collectives`): MPI_Iallgatherv where every rank sends one block,
/// else MPI_Ialltoallw, with the same bytes, from and to the same places, and results of the same bits. A rank that
/// waits for such a call cannot know which of its peers is late, and its message names them all. A communicator of
/// some of the ranks is made on a thread of its own, since MPI makes it in a call that has no deadline: this takes
/// MPI_THREAD_MULTIPLE. With less, collectives of such groups are sent message by message.
///
/// All members but `rank`, `size`, `usable` and `abandon` are collective. They throw `transport_error`
///
/// - if an MPI call fails, with its name;
/// - if a rank does not come before the deadline, with what was waited for and who is late;
/// - if another rank has failed, with its message;
/// - if ranks are in different collective calls, with who calls what: they first compare the call's kind and number,
///   and the type and count of its values. Values that differ in type or count only are a `std::invalid_argument` on
///   all ranks, and the world can still be used.
///
/// A rank that throws during a collective call or a construction (`std::bad_alloc`, say) fails the world: the others
/// throw at once, with its name and the reason, also if it goes on. After a failure this world cannot be used any more,
/// and messages may be left in it that nobody takes: end the job (MPI_Abort), or go on without this world.
/// Communications that cannot be cancelled, as collectives of MPI cannot, go on in memory that is kept until the
/// process ends.
///
/// Worlds and operators may be destroyed after MPI_Finalize, in static variables for example: they then call MPI no
/// more. Calls then throw `std::logic_error`.
///
/// When a process has died or been stopped, the others throw after the deadline; MPI itself promises nothing from then
/// on. Whatever may wait for the dead rank hangs: MPI_Finalize, and every collective call on the trainer's own
/// communicators; the thread that makes a communicator may be inside of MPI for ever. Write down the message, and
/// leave by MPI_Abort or _exit. A rank that is lost while the world itself is made has no name in the message. Another
/// world can be made of the survivors only where the MPI library has fault tolerance (MPIX_Comm_shrink) and was started
/// with it. Most launchers end all ranks as soon as one has died, so that survivors have no time for a message;
/// OpenMPI's leaves them alone with `mpirun --enable-recovery` (4.1.4; the launcher of MPICH 4.0.2 does not, even with
/// `-disable-auto-cleanup`).
class world {
 public:
  using memory = mpi::memory;

  /// Throws `std::invalid_argument` if MPI is not initialised, for a communicator that is null or an intercommunicator,
  /// for options that make no sense and for more threads than MPI was initialised for.
  explicit world(MPI_Comm parent, const options& options = {})
      : own_{std::make_shared<communicator>(parent, options)}, exceptions_{std::uncaught_exceptions()} {}
  world(const world&) = delete;
  world& operator=(const world&) = delete;
  /// Collective, but for a rank that leaves by an exception: the others then fail when they next wait, with its name.
  ~world() {
    if (std::uncaught_exceptions() <= exceptions_ || own_->failed()) return;
    own_->give_notice("has ended by an exception");
  }

  [[nodiscard]] int rank() const noexcept { return own_->rank(); }
  [[nodiscard]] int size() const noexcept { return own_->size(); }

  /// False after a failure, this rank's or one that another has told of: from then on every other member throws its
  /// message. Not collective, and for any thread. Looks for such news, once, if this thread may call MPI and no other
  /// is in a call.
  [[nodiscard]] bool usable() { return own_->usable(); }

  /// Returns when all ranks have called it.
  void barrier() { own_->barrier(); }

  /// The texts of all ranks, of a call that is compared as `call`. Together at most 2 GiB, else all ranks throw
  /// `std::length_error`.
  [[nodiscard]] std::vector<std::string> all_gather(
      const std::string& text, detail::collective_call call = detail::collective_call::all_gather) {
    return own_->all_gather(text, call);
  }

  /// This rank gives up: the others fail at once with "rank 2 failed " and `why`. Not collective. From a thread that
  /// may not call MPI, the others are told when a thread that may comes to this world.
  void abandon(const std::string& why) noexcept { own_->give_notice("failed ", why); }

  /// Replaces the values of all ranks by their sums, added in the order of the ranks: every rank gets the same bits.
  /// Throws `std::invalid_argument` on every rank if they do not all give equally many values of one type. Each rank
  /// adds a part of them: 2 (P - 1) / P of the bytes are sent, and up to 16 MiB taken for a while.
  template <class T>
  void all_reduce_sum(std::span<T> values) {
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

  /// Costs four small collective calls, and one persistent request for each side of each exchange. With native
  /// collectives the first plan with a group also makes its communicator (`communicator::make_groups`). Throws
  /// `transport_error` on all ranks if a rank sends what its peer does not expect.
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
