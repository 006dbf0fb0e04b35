// Named tensors of which each rank of a group holds a slice.
#pragma once

#include <mlx/array.h>
#include <mlx/distributed/distributed.h>

#include <string>

#include "weights/source.h"

namespace tandem::train {

// The number in "model.layers.3.…"; -1: it is in no layer.
int layer_of(const std::string& name);

// The sum over ranks of which only one has other numbers than zeros, float32: exact, whatever sums travel as.
mlx::core::array sum_of_one(const mlx::core::array& x, const mlx::core::distributed::Group& group);

// The whole of what has this slice, from all ranks' parts; every rank calls it.
mlx::core::array whole_of(const weights::Slice& slice, const mlx::core::array& part,
                          const mlx::core::distributed::Group& group);

// This rank's part of it.
mlx::core::array own_part_of(const weights::Slice& slice, const mlx::core::array& whole);

}  // namespace tandem::train
