// Named tensors of which each rank of a group holds a slice.
#pragma once

#include <mlx/array.h>
#include <mlx/distributed/distributed.h>

#include <string>

#include "weights/source.h"

namespace tandem::train {

// The number in "model.layers.3.…"; -1: it is in no layer.
int layer_of(const std::string& name);

// "….mlp.gate.weight", and V3's bias of its choice of experts.
bool is_router(const std::string& name);
bool is_router_bias(const std::string& name);

// How many of a tensor's rows each of some ranks holds, the last one perhaps fewer.
int rows_each(int rows, int ranks);

// The sum over ranks of which only one has other numbers than zeros, float32: exact, whatever sums travel as.
mlx::core::array sum_of_one(const mlx::core::array& x, const mlx::core::distributed::Group& group);

// The sum of one number of each rank, float32, in rank order and exact in the same way.
mlx::core::array sum_of_numbers(const mlx::core::array& x, const mlx::core::distributed::Group& group);

// The whole of what has this slice, from all ranks' parts; every rank calls it.
mlx::core::array whole_of(const weights::Slice& slice, const mlx::core::array& part,
                          const mlx::core::distributed::Group& group);

}  // namespace tandem::train
