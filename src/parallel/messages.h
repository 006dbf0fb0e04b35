// Bytes to ranks of a tcp group. The sender waits for none of them to take part, unless more is under way
// than the sockets' buffers hold.
#pragma once

#include <mlx/distributed/distributed.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace tandem::parallel {

// To these ranks; returns once the kernel has the bytes for each. ClusterError where the group has lost a
// rank, or one takes nothing for so long as TcpOptions::collective. At most limits::broadcast_bytes.
void send_to(const mlx::core::distributed::Group& group, const std::vector<int>& ranks,
             const std::vector<std::uint8_t>& bytes);
// The same to every other rank.
void send_to_all(const mlx::core::distributed::Group& group, const std::vector<std::uint8_t>& bytes);

// What rank `source` has sent by either. ClusterError where the group has lost a rank, or it is longer than
// limits::broadcast_bytes.
std::vector<std::uint8_t> receive_from(const mlx::core::distributed::Group& group, int source);

// The bytes to each of `targets`, while others come from `source` into `incoming`: all at the same time, past
// the streams, as exchange() (tcp_group.h) and with its errors. Either may be nothing.
void hand_over(const mlx::core::distributed::Group& group, const std::vector<int>& targets,
               std::optional<std::span<const char>> outgoing, int source,
               std::optional<std::span<char>> incoming);

}  // namespace tandem::parallel
