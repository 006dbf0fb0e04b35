// Bytes from one rank to all, by reductions alone, so that it works on every backend of MLX.
#pragma once

#include <mlx/distributed/distributed.h>

#include <cstdint>
#include <vector>

namespace tandem::parallel {

// `bytes` of rank `root`, on every rank; the others' argument is ignored. One small collective where the
// bytes fit it, else two. ClusterError where the group has lost a rank.
std::vector<std::uint8_t> broadcast(const mlx::core::distributed::Group& group,
                                    std::vector<std::uint8_t> bytes, int root);

}  // namespace tandem::parallel
