// Several of kernels/' operations as one.
#pragma once

#include <mlx/array.h>

#include <vector>

namespace tandem::kernels {

// The same arrays, computed by one operation of the stream in place of one for each of this folder's CPU
// operations that lead to them (an operation costs 5 to 25 µs between its caller's and the stream's thread).
// What other operations and earlier fused() calls gave is read as it is; so what a fused computation shares
// with a later one must be among its `outputs` (each of them once), or is computed twice. Arrays of a GPU
// stream come back as they are. The gradient is that of the operations.
std::vector<mlx::core::array> fused(const std::vector<mlx::core::array>& outputs);

}  // namespace tandem::kernels
