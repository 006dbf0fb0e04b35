#include "parallel/messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>

#include "base/error.h"
#include "base/limits.h"
#include "parallel/tcp_group.h"

namespace tandem::parallel {
namespace {

// A message tells no length: it goes before.
using Length = std::uint32_t;

}  // namespace

void send_to(const mlx::core::distributed::Group& group, const std::vector<int>& ranks,
             const std::vector<std::uint8_t>& bytes) {
  assert(bytes.size() <= limits::broadcast_bytes);
  const auto length = static_cast<Length>(bytes.size());
  const auto send = [&](std::span<const char> part) { hand_over(group, ranks, part, -1, std::nullopt); };
  send({reinterpret_cast<const char*>(&length), sizeof(length)});
  send({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

void send_to_all(const mlx::core::distributed::Group& group, const std::vector<std::uint8_t>& bytes) {
  std::vector<int> others;
  for (int rank = 0; rank < group.size(); ++rank) {
    if (rank != group.rank()) others.push_back(rank);
  }
  send_to(group, others, bytes);
}

std::vector<std::uint8_t> receive_from(const mlx::core::distributed::Group& group, int source) {
  Length length = 0;
  exchange(group, {{source, std::nullopt, std::span(reinterpret_cast<char*>(&length), sizeof(length))}});
  if (length > limits::broadcast_bytes)
    throw ClusterError(fmt::format("rank {} sends a message of {} bytes, which is too long", source, length));
  std::vector<std::uint8_t> bytes(length);
  exchange(group, {{source, std::nullopt, std::span(reinterpret_cast<char*>(bytes.data()), length)}});
  return bytes;
}

void hand_over(const mlx::core::distributed::Group& group, const std::vector<int>& targets,
               std::optional<std::span<const char>> outgoing, int source,
               std::optional<std::span<char>> incoming) {
  std::vector<Transfer> transfers;
  if (outgoing) {
    for (const int target : targets) transfers.push_back({target, outgoing, std::nullopt});
  }
  if (incoming) {
    auto with =
        std::find_if(transfers.begin(), transfers.end(), [&](const auto& one) { return one.peer == source; });
    if (with == transfers.end()) with = transfers.insert(with, Transfer{source, {}, {}});
    with->incoming = incoming;
  }
  if (!transfers.empty()) exchange(group, std::move(transfers));
}

}  // namespace tandem::parallel
