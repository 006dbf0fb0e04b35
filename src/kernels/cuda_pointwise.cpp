#include "kernels/cuda_pointwise.h"

#include <bit>

#include "kernels/cuda_kernel.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// Inputs: x, added, weight; outputs: sum, norm; constants: T, size, threads, eps_bits. A block computes a
// row.
const char* const source = R"(
  using namespace tandem;
  constexpr int each = (size + threads - 1) / threads;
  const long long row = (long long)blockIdx.x * size;
  float values[each], squares = 0;
  #pragma unroll
  for (int i = 0; i < each; ++i) {
    const int k = threadIdx.x + i * threads;
    if (k >= size) continue;
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
    if (k < size) norm[row + k] = T(values[i] * factor * to_float(weight[k]));
  }
)";

}  // namespace

std::optional<SumAndNorm> add_rms_norm_on_cuda(const mx::array& x, const mx::array& added,
                                               const mx::array& weight, float eps, mx::Stream s) {
  constexpr int threads = 256, most = 16384;
  const int size = static_cast<int>(weight.size()), rows = static_cast<int>(x.size() / weight.size());
  const mx::Dtype dtype = x.dtype();
  if (!is_cuda(s) || !is_half(dtype) || added.dtype() != dtype || weight.dtype() != dtype || size > most)
    return std::nullopt;
  const int eps_bits = std::bit_cast<int>(eps);
  static CudaKernels kernels;
  const auto made = kernels.run(
      {rows, size, eps_bits, number_of(dtype)},
      [&] {
        return CudaLaunch{"tandem_add_rms_norm",
                          cuda_header,
                          source,
                          {"x", "added", "weight"},
                          {"sum", "norm"},
                          {{"T", dtype}, {"size", size}, {"threads", threads}, {"eps_bits", eps_bits}},
                          {rows * threads, 1, 1},
                          {threads, 1, 1}};
      },
      {x, added, weight}, {x.shape(), x.shape()}, {dtype, dtype}, s);
  return SumAndNorm{made[0], made[1]};
}

}  // namespace tandem::kernels
