// Bytes to ranks of a tcp group, whose sender does not wait for any of them to take part.
#pragma once

#include <mlx/distributed/distributed.h>

#include <cstdint>
#include <vector>

namespace tandem::parallel {

// To these ranks. ClusterError where the group has lost a rank.
void send_to(const mlx::core::distributed::Group& group, const std::vector<int>& ranks,
             const std::vector<std::uint8_t>& bytes);
// To every other rank. ClusterError where the group has lost a rank.
void send_to_all(const mlx::core::distributed::Group& group, const std::vector<std::uint8_t>& bytes);

// What rank `source` has sent by either. ClusterError where the group has lost a rank, or it is longer than
// limits::broadcast_bytes.
std::vector<std::uint8_t> receive_from(const mlx::core::distributed::Group& group, int source);

}  // namespace tandem::parallel
