// The data planes that MLX brings itself.
#pragma once

#include <mlx/distributed/distributed.h>

#include <string>
#include <vector>

#include "parallel/tcp_group.h"

namespace tandem::parallel {

// Which of them `auto` may take on this machine: jaccl (RDMA over Thunderbolt 5) where MLX has it and
// MLX_IBV_DEVICES names the file of the machines' RDMA devices; nccl where there is one of this machine's
// `gpus` for each of the `ranks` (0: the ranks are on several machines).
std::vector<std::string> automatic_backends(int gpus, int ranks);

// "auto" made one name: the first of jaccl and nccl that every rank may take, else tcp. `offers`: each rank's
// automatic_backends().
std::string choose_backend(const std::string& wanted, const std::vector<std::vector<std::string>>& offers);

// Joins by ring, jaccl or nccl, set up as MLX's launcher does: by environment variables of this process and,
// for ring, a host file. These backends know no secret and no deadline. InputError where MLX has no such
// backend here or refuses, where the host file cannot be written, and for mpi, which only mpirun can start.
mlx::core::distributed::Group join_mlx_group(const std::string& backend, int rank,
                                             const std::vector<Endpoint>& endpoints);

}  // namespace tandem::parallel
