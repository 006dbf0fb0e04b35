#include "kernels/cuda_pointwise.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda_kernel.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// Inputs: x, added, weight; outputs: sum, norm; constants: T, size, threads, eps_bits. A block computes a
// row.
const char* const norm_source = R"(
  using namespace tandem;
  constexpr int each = (size + threads - 1) / threads;
  const long long row = (long long)blockIdx.x * size;
  float values[each], weights[each], squares = 0;
  #pragma unroll
  for (int i = 0; i < each; ++i) {
    const int k = threadIdx.x + i * threads;
    if (k >= size) continue;
    weights[i] = to_float(weight[k]);
    const T rounded = T(to_float(x[row + k]) + to_float(added[row + k]));
    sum[row + k] = rounded;
    values[i] = to_float(rounded);
    squares += values[i] * values[i];
  }
  __shared__ float parts[threads / 32];
  squares = sum_of_warp(squares);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0;
  #pragma unroll
  for (int i = 0; i < threads / 32; ++i) total += parts[i];
  const float factor = rsqrtf(total / size + __int_as_float(eps_bits));
  #pragma unroll
  for (int i = 0; i < each; ++i) {
    const int k = threadIdx.x + i * threads;
    if (k < size) norm[row + k] = T(values[i] * factor * weights[i]);
  }
)";

// Inputs: a, b, positions, wavelengths; outputs: a_turned, b_turned; constants: T, a_width, b_width,
// head_dim, dims, pairs, factor_bits. A thread turns two numbers of a row, or copies two that are not turned.
const char* const rotate_source = R"(
  using namespace tandem;
  constexpr int half = dims / 2, of_head = half + (head_dim - dims + 1) / 2;
  constexpr int a_heads = a_width / head_dim, heads = a_heads + b_width / head_dim;
  const int at = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (at >= heads * of_head) return;
  const int index = at / of_head, i = at % of_head;
  const bool in_a = index < a_heads;
  const int head = in_a ? index : index - a_heads;
  const T* from = (in_a ? a + (long long)row * a_strides[0] : b + (long long)row * b_strides[0]) + head * head_dim;
  T* to = (in_a ? a_turned + (long long)row * a_width : b_turned + (long long)row * b_width) + head * head_dim;
  if (i >= half) {
    for (int k = dims + 2 * (i - half); k < min(head_dim, dims + 2 * (i - half) + 2); ++k) to[k] = from[k];
    return;
  }
  const float angle = positions[row] / wavelengths[i], factor = __int_as_float(factor_bits);
  float sine, cosine;
  sincosf(angle, &sine, &cosine);
  sine *= factor;
  cosine *= factor;
  const int first = pairs ? 2 * i : i, second = pairs ? 2 * i + 1 : i + half;
  const float x = to_float(from[first]), y = to_float(from[second]);
  to[first] = T(x * cosine - y * sine);
  to[second] = T(y * cosine + x * sine);
)";

}  // namespace

std::optional<SumAndNorm> add_rms_norm_on_cuda(const mx::array& x, const mx::array& added,
                                               const mx::array& weight, float eps, mx::Stream s) {
  constexpr int most = 16384;
  const int size = static_cast<int>(weight.size()), threads = size > 1024 ? 1024 : 256;
  const int rows = static_cast<int>(x.size() / weight.size());
  const mx::Dtype dtype = x.dtype();
  if (!is_cuda(s) || !is_half(dtype) || added.dtype() != dtype || weight.dtype() != dtype || size > most ||
      has_gradient({x, added, weight}))
    return std::nullopt;
  const int eps_bits = std::bit_cast<int>(eps);
  static CudaKernels kernels;
  const auto made = kernels.run(
      {rows, size, eps_bits, number_of(dtype)},
      [&] {
        return CudaLaunch{"tandem_add_rms_norm",
                          cuda_header,
                          norm_source,
                          {"x", "added", "weight"},
                          {"sum", "norm"},
                          {{"T", dtype}, {"size", size}, {"threads", threads}, {"eps_bits", eps_bits}},
                          {rows * threads, 1, 1},
                          {threads, 1, 1}};
      },
      {x, added, weight}, {x.shape(), x.shape()}, {dtype, dtype}, s);
  return SumAndNorm{made[0], made[1]};
}

std::optional<std::vector<mx::array>> rotate_on_cuda(const std::vector<mx::array>& rows, const Angles& angles,
                                                     int head_dim, mx::Stream s) {
  if (!is_cuda(s) || rows.empty() || rows.size() > 2 || has_gradient(rows)) return std::nullopt;
  const mx::array &a = rows.front(), &b = rows.back();
  const mx::Dtype dtype = a.dtype();
  if (!is_half(dtype) || b.dtype() != dtype) return std::nullopt;
  const int tokens = a.shape(0), a_width = a.shape(1), b_width = rows.size() == 2 ? b.shape(1) : 0;
  constexpr int threads = 128;
  const int of_head = angles.dims / 2 + (head_dim - angles.dims + 1) / 2;
  const int blocks = ((a_width + b_width) / head_dim * of_head + threads - 1) / threads;
  const int factor_bits = std::bit_cast<int>(angles.factor);
  static CudaKernels kernels;
  auto made = kernels.run(
      {tokens, a_width, b_width, head_dim, angles.dims, angles.pairs, factor_bits, number_of(dtype)},
      [&] {
        return CudaLaunch{.name = "tandem_rotate",
                          .header = cuda_header,
                          .source = rotate_source,
                          .inputs = {"a", "b", "positions", "wavelengths"},
                          .outputs = {"a_turned", "b_turned"},
                          .constants = {{"T", dtype},
                                        {"a_width", a_width},
                                        {"b_width", b_width},
                                        {"head_dim", head_dim},
                                        {"dims", angles.dims},
                                        {"pairs", angles.pairs},
                                        {"factor_bits", factor_bits}},
                          .grid = {blocks * threads, tokens, 1},
                          .block = {threads, 1, 1},
                          .strided = true};
      },
      {a, b, angles.positions, angles.wavelengths}, {a.shape(), {tokens, std::max(1, b_width)}},
      {dtype, dtype}, s);
  made.resize(rows.size(), made.front());
  return made;
}

}  // namespace tandem::kernels
