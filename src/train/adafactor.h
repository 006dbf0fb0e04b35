// Adafactor (Shazeer and Stern 2018, arXiv:1804.04235): of a matrix's squared gradients it remembers the
// means of rows and of columns alone. With a learning rate given, as transformers and MLX have it: no
// relative step.
#pragma once

#include <mlx/array.h>
#include <mlx/distributed/distributed.h>

#include <vector>

#include "weights/source.h"

namespace tandem::train {

// What is remembered of a parameter of this slice, as slices: means of a matrix's rows, and of its columns
// (of each in a stack); of a vector, the squares.
std::vector<weights::Slice> adafactor_state(const weights::Slice& slice);

// This rank's part of the step at learning rate 1, clipped where its root mean square is above 1, after
// `step` steps with this one. `state` is as above; `group` are the ranks with the other parts.
mlx::core::array adafactor_direction(const mlx::core::array& gradient, std::vector<mlx::core::array>& state,
                                     const weights::Slice& slice, int step,
                                     const mlx::core::distributed::Group& group);

}  // namespace tandem::train
