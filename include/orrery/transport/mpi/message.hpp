// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <mpi.h>

#include "orrery/transport/mpi/communicator.hpp"
#include "orrery/transport/mpi/memory.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::mpi {

/// Where the address of a message is passed: as an argument of the MPI call, or in its datatype, as calls with several
/// datatypes need it.
enum class address_in : std::uint8_t { argument, type };

/// The bytes of several pieces as one element of an MPI datatype. An MPI count is an int, so larger pieces are split,
/// and pieces that are adjacent in memory are joined.
class message_type {
 public:
  message_type(communicator& world, const std::vector<piece>& pieces, address_in where = address_in::argument) {
    std::vector<MPI_Aint> addresses;
    std::vector<int> lengths;
    const std::byte* end = nullptr;
    for (const piece& part : pieces) {
      for (std::int64_t at = 0; at < part.bytes;) {
        std::byte* const from = part.data + at;
        if (from == end && lengths.back() < most) {
          const std::int64_t more = (std::min)(part.bytes - at, std::int64_t{most - lengths.back()});
          lengths.back() += static_cast<int>(more);
          at += more;
        } else {
          const std::int64_t length = (std::min)(part.bytes - at, std::int64_t{most});
          MPI_Aint address = 0;
          world.check(MPI_Get_address(from, &address), "MPI_Get_address", communicator::nothing);
          addresses.push_back(address);
          lengths.push_back(static_cast<int>(length));
          at += length;
        }
        end = part.data + at;
      }
    }
    if (lengths.empty() || (lengths.size() == 1 && where == address_in::argument)) {
      address_ = lengths.empty() ? nullptr : first_of(pieces).data;
      count_ = lengths.empty() ? 0 : lengths[0];
      return;
    }
    world.check(
        MPI_Type_create_hindexed(static_cast<int>(lengths.size()), lengths.data(), addresses.data(), MPI_BYTE, &made_),
        "MPI_Type_create_hindexed", communicator::nothing);
    world.check(MPI_Type_commit(&made_), "MPI_Type_commit", communicator::nothing);
    address_ = MPI_BOTTOM;
    count_ = 1;
  }
  message_type(const message_type&) = delete;
  message_type& operator=(const message_type&) = delete;
  ~message_type() {
    if (made_ != MPI_DATATYPE_NULL && running()) MPI_Type_free(&made_);
  }

  [[nodiscard]] void* address() const noexcept { return address_; }
  [[nodiscard]] int count() const noexcept { return count_; }
  [[nodiscard]] MPI_Datatype type() const noexcept { return made_ == MPI_DATATYPE_NULL ? MPI_BYTE : made_; }

 private:
  static constexpr int most = 1 << 30;

  static const piece& first_of(const std::vector<piece>& pieces) {
    return *std::find_if(pieces.begin(), pieces.end(), [](const piece& part) { return part.bytes > 0; });
  }

  void* address_ = nullptr;
  int count_ = 0;
  MPI_Datatype made_ = MPI_DATATYPE_NULL;
};

}  // namespace orrery::mpi
