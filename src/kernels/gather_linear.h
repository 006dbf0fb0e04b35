// The products of a mixture of experts: each row with the matrices of the experts chosen for it.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <memory>
#include <optional>
#include <vector>

#include "kernels/matrix.h"

namespace tandem::kernels {

// Matrices [out, in] of one shape and kind, one an expert.
struct Experts {
  std::optional<mlx::core::array>
      weight;                    // [E, out, in], or [E, out, in * bits / 32] uint32; none once packed
  std::optional<Affine> affine;  // scales and biases [E, out, in / group]
  std::vector<std::shared_ptr<const PackedMatrix>> packed;

  int count() const;
  int out() const;
  int in() const;
};

// The same experts in panels, one after the other. Reads the arrays now, and only them.
Experts pack(const Experts& experts);
// Of matrices that are packed already.
Experts experts_of(const std::vector<Matrix>& packed);

// Quantised ones as a dense array in the dtype of their scales.
Experts dequantised(const Experts& experts, mlx::core::Stream s);

// x [T, in], of which each of the k experts of a row reads that row, or [T, k, in], a row for each; ids [T,
// k] int32 → [T, k, out]. On a CPU stream: x and the result are float32, rows are taken expert by expert, and
// only the chosen experts' weights are read. A result's bits are those that linear() gives for the row and
// the expert's matrix. The result of an id that is no expert's is 0: the experts of other ranks. On a GPU
// stream: MLX's gather_mm or gather_qmm, sorted by expert where there are many rows; every id must be an
// expert's. Gradients: by x (where a row's ids differ, if x is one for all of them), and by the weight where
// it is a dense array.
mlx::core::array gather_linear(const mlx::core::array& x, const Experts& experts, const mlx::core::array& ids,
                               mlx::core::StreamOrDevice s = {});

// Σ over the choices of weights [T, k] times what gather_linear() gives for x [T, k, in] → [T, out]. On a CPU
// stream it is float32, the weights are multiplied with x, which is narrower in a mixture, and the sum is in
// the order of the experts; a token's ids must differ but for those of no expert. On a GPU stream:
// weighted_sum() of gather_linear(). Gradients: by x, by the weights, and by the experts' weight where it is
// a dense array.
mlx::core::array gather_linear_sum(const mlx::core::array& x, const mlx::core::array& weights,
                                   const Experts& experts, const mlx::core::array& ids,
                                   mlx::core::StreamOrDevice s = {});

// x [T, H * in], head h of every row by the matrix of expert h → [T, H * out]; devices as above.
mlx::core::array linear_by_head(const mlx::core::array& x, const Experts& heads,
                                mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
