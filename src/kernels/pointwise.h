// The small operations between products, each one pass over its rows on a CPU; MLX's own on a GPU.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <vector>

namespace tandem::kernels {

// On a CPU stream inputs become float32 and so are the results; on a GPU stream the dtype stays. Each has its
// gradients by every input. std::invalid_argument where shapes do not fit together.

// x [..., k * n], each n of it by itself: x / sqrt(mean(x²) + eps) * weight [n] (Zhang and Sennrich,
// arXiv:1910.07467).
mlx::core::array rms_norm(const mlx::core::array& x, const mlx::core::array& weight, float eps,
                          mlx::core::StreamOrDevice s = {});

// x + added, and the norm of it.
struct SumAndNorm {
  mlx::core::array sum, norm;
};
SumAndNorm add_rms_norm(const mlx::core::array& x, const mlx::core::array& added,
                        const mlx::core::array& weight, float eps, mlx::core::StreamOrDevice s = {});

// x + bias, whose axes are the last ones of x: [n], or all of them.
mlx::core::array add(const mlx::core::array& x, const mlx::core::array& bias,
                     mlx::core::StreamOrDevice s = {});

// silu(gate) * up, of one shape (Shazeer, arXiv:2002.05202).
mlx::core::array silu_multiply(const mlx::core::array& gate, const mlx::core::array& up,
                               mlx::core::StreamOrDevice s = {});

// Rotary positions (Su et al., arXiv:2104.09864) of T rows.
struct Angles {
  int dims = 0;                     // of a head that are turned; what lies past them stays
  mlx::core::array positions;       // [T] int32
  mlx::core::array wavelengths;     // [dims / 2] float32: positions to a turn of one radian
  float factor = 1;                 // multiplies cosines and sines
  bool pairs = false;               // what is turned together: neighbours, else the halves of the dims
  mlx::core::array cosines, sines;  // [T, dims / 2] float32, row-major on a CPU
};
Angles angles_at(const mlx::core::array& positions, const mlx::core::array& wavelengths, float factor,
                 bool pairs = false, mlx::core::StreamOrDevice s = {});

// Each of `rows` [T, heads * head_dim], its heads turned: numbers i and i + dims / 2 against each other as in
// transformers' rotate_half, or 2i and 2i + 1 as in the paper.
std::vector<mlx::core::array> rotate(const std::vector<mlx::core::array>& rows, const Angles& angles,
                                     int head_dim, mlx::core::StreamOrDevice s = {});

// Numbers [first, end) of each head of x [T, heads * head_dim] → [T, heads * (end - first)].
mlx::core::array head_part(const mlx::core::array& x, int head_dim, int first, int end,
                           mlx::core::StreamOrDevice s = {});
// The heads of a [T, heads * a_dim] and b [T, heads * b_dim] one after the other: [T, heads * (a_dim +
// b_dim)].
mlx::core::array join_heads(const mlx::core::array& a, int a_dim, const mlx::core::array& b, int b_dim,
                            mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
