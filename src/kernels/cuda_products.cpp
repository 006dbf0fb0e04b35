#include "kernels/cuda_products.h"

#include <mlx/ops.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda_kernel.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

constexpr int tile = 16;        // outputs of a block
constexpr int column_tile = 8;  // rows of x that a tensor core takes at once
constexpr int max_rows = 32;
constexpr int max_pairs = 256;
constexpr int warp = 32;

// A pair of weights is two of one word's, four apart: (w >> 4 j) & 0x000f000f.
const char* const packed_header = R"(
namespace tandem {

// What stands before the 4 bits of a weight, so that they are the end of a number's mantissa.
template <typename T> struct Offset;
template <> struct Offset<__nv_bfloat16> {
  static constexpr unsigned int bits = 0x43004300, ones = 0x3f803f80;
  static constexpr float value = 128;
};
template <> struct Offset<__half> {
  static constexpr unsigned int bits = 0x64006400, ones = 0x3c003c00;
  static constexpr float value = 1024;
};

template <typename T>
__device__ __forceinline__ unsigned int pair(unsigned int word, int index) {
  return ((word >> (4 * index)) & 0x000f000f) | Offset<T>::bits;
}

template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], unsigned int a0, unsigned int a1, unsigned int a2,
                                             unsigned int a3, unsigned int b0, unsigned int b1) {
  if constexpr (Offset<T>::value == 128) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

}  // namespace tandem
)";

// Inputs: x, w, scales, biases and perhaps ids; constants: T, in, out, rows, group, chunk, warps,
// column_tiles, and for experts: experts, rows_shared. A warp computes 16 outputs of up to 8 column_tiles
// rows from each warps-th chunk of groups; the warps' sums are added in shared memory.
const char* const packed_source = R"(
  using namespace tandem;
  constexpr int words = group / 32, groups = in / group;
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const int line = lane / 4, quarter = lane % 4;
  const int first = blockIdx.x * 16;
  __shared__ float sums[warps][column_tiles][16][8];

  const bool absent = id < 0 || id >= experts;
  const long long matrix = absent ? 0 : id, row = blockIdx.y / rows_shared;
  const int out0 = min(first + line, out - 1), out1 = min(first + line + 8, out - 1);
  const unsigned int* w0 = w + (matrix * out + out0) * (in / 8) + quarter * words;
  const unsigned int* w1 = w + (matrix * out + out1) * (in / 8) + quarter * words;
  const T* s0 = scales + (matrix * out + out0) * groups;
  const T* s1 = scales + (matrix * out + out1) * groups;
  const T* z0 = biases + (matrix * out + out0) * groups;
  const T* z1 = biases + (matrix * out + out1) * groups;
  const T* from = x + row * in + quarter * words * 8;

  float y[column_tiles][4] = {};
  for (int base = part * chunk; base < groups; base += warps * chunk) {
    Vector<unsigned int, words> a0[chunk], a1[chunk];
    #pragma unroll
    for (int c = 0; c < chunk; ++c) {
      a0[c] = Vector<unsigned int, words>::load(w0 + (base + c) * (group / 8));
      a1[c] = Vector<unsigned int, words>::load(w1 + (base + c) * (group / 8));
    }
    const auto scale0 = Vector<T, chunk>::load(s0 + base), scale1 = Vector<T, chunk>::load(s1 + base);
    const auto bias0 = Vector<T, chunk>::load(z0 + base), bias1 = Vector<T, chunk>::load(z1 + base);
    #pragma unroll
    for (int c = 0; c < chunk; ++c) {
      float products[column_tiles][4] = {}, totals[column_tiles][4] = {};
      #pragma unroll
      for (int i = 0; i < words; ++i) {
        const unsigned int u = a0[c].at[i], v = a1[c].at[i];
        #pragma unroll
        for (int n = 0; n < column_tiles; ++n) {
          uint4 b = {0, 0, 0, 0};
          const int column = n * 8 + line;
          if (column < rows)
            b = __ldg(reinterpret_cast<const uint4*>(from + (long long)column * in + (base + c) * group + i * 8));
          const unsigned int b0 = __byte_perm(b.x, b.z, 0x5410), b1 = __byte_perm(b.x, b.z, 0x7632);
          const unsigned int b2 = __byte_perm(b.y, b.w, 0x5410), b3 = __byte_perm(b.y, b.w, 0x7632);
          multiply_add<T>(products[n], pair<T>(u, 0), pair<T>(v, 0), pair<T>(u, 1), pair<T>(v, 1), b0, b1);
          multiply_add<T>(products[n], pair<T>(u, 2), pair<T>(v, 2), pair<T>(u, 3), pair<T>(v, 3), b2, b3);
          constexpr unsigned int ones = Offset<T>::ones;
          multiply_add<T>(totals[n], ones, ones, ones, ones, b0, b1);
          multiply_add<T>(totals[n], ones, ones, ones, ones, b2, b3);
        }
      }
      const float f0 = to_float(scale0.at[c]), f1 = to_float(scale1.at[c]);
      const float g0 = to_float(bias0.at[c]) - Offset<T>::value * f0;
      const float g1 = to_float(bias1.at[c]) - Offset<T>::value * f1;
      #pragma unroll
      for (int n = 0; n < column_tiles; ++n) {
        y[n][0] += f0 * products[n][0] + g0 * totals[n][0];
        y[n][1] += f0 * products[n][1] + g0 * totals[n][1];
        y[n][2] += f1 * products[n][2] + g1 * totals[n][2];
        y[n][3] += f1 * products[n][3] + g1 * totals[n][3];
      }
    }
  }
  #pragma unroll
  for (int n = 0; n < column_tiles; ++n) {
    sums[part][n][line][quarter * 2] = y[n][0];
    sums[part][n][line][quarter * 2 + 1] = y[n][1];
    sums[part][n][line + 8][quarter * 2] = y[n][2];
    sums[part][n][line + 8][quarter * 2 + 1] = y[n][3];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 16 * rows; i += warps * 32) {
    const int column = i / 16, output = i % 16;
    if (first + output >= out) continue;
    float sum = 0;
    #pragma unroll
    for (int p = 0; p < warps; ++p) sum += sums[p][column / 8][output][column % 8];
    result[((long long)blockIdx.y * rows + column) * out + first + output] = T(absent ? 0.0f : sum);
  }
)";

// Inputs: x, w, ids; constants: T, in, out, experts, rows_shared, warps, outputs. A warp computes `outputs`
// outputs.
const char* const dense_source = R"(
  using namespace tandem;
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const int first = (blockIdx.x * warps + part) * outputs;
  const int id = tandem_ids[blockIdx.y];
  const bool absent = id < 0 || id >= experts;
  const T* from = x + (long long)(blockIdx.y / rows_shared) * in;
  const T* rows[outputs];
  #pragma unroll
  for (int o = 0; o < outputs; ++o)
    rows[o] = w + ((long long)(absent ? 0 : id) * out + min(first + o, out - 1)) * in;
  float sums[outputs] = {};
  #pragma unroll 2
  for (int k = lane * 8; k < in; k += 256) {
    const auto b = Vector<T, 8>::load(from + k);
    #pragma unroll
    for (int o = 0; o < outputs; ++o) {
      const auto a = Vector<T, 8>::load(rows[o] + k);
      #pragma unroll
      for (int i = 0; i < 8; ++i) sums[o] += to_float(a.at[i]) * to_float(b.at[i]);
    }
  }
  #pragma unroll
  for (int o = 0; o < outputs; ++o) {
    sums[o] = sum_of_warp(sums[o]);
    if (lane == 0 && first + o < out) result[(long long)blockIdx.y * out + first + o] = T(absent ? 0.0f : sums[o]);
  }
)";

bool fits(const Affine& affine, int in) {
  return affine.bits == 4 && is_half(affine.scales.dtype()) &&
         affine.biases.dtype() == affine.scales.dtype() && in % affine.group == 0 &&
         (affine.group == 32 || affine.group == 64 || affine.group == 128);
}

// What a product of 4 bit weights is compiled for. With experts, each of the pairs is a product of one row.
struct Packed {
  int in, out, rows, group;
  mx::Dtype dtype;
  int experts = 0, pairs = 1, rows_shared = 1;

  std::vector<int> key() const {
    return {in, out, rows, group, number_of(dtype), experts, pairs, rows_shared};
  }
};

CudaLaunch describe(const Packed& p) {
  const int groups = p.in / p.group, tiles = (p.out + tile - 1) / tile;
  const int chunk = groups % 4 == 0 ? 4 : groups % 2 == 0 ? 2 : 1;
  const int most = tiles >= 512 ? 4 : 8;  // enough to keep every multiprocessor busy
  const int warps = std::min(most, groups / chunk);
  CudaLaunch launch{p.experts > 0 ? "tandem_packed_experts" : "tandem_packed",
                    std::string(cuda_header) + packed_header,
                    p.experts > 0 ? "const int id = tandem_ids[blockIdx.y];" : "const int id = 0;",
                    {"x", "w", "scales", "biases"},
                    {"result"},
                    {{"T", p.dtype},
                     {"in", p.in},
                     {"out", p.out},
                     {"rows", p.rows},
                     {"group", p.group},
                     {"chunk", chunk},
                     {"warps", warps},
                     {"column_tiles", (p.rows + column_tile - 1) / column_tile},
                     {"experts", std::max(1, p.experts)},
                     {"rows_shared", p.rows_shared}},
                    {tiles * warps * warp, p.pairs, 1},
                    {warps * warp, 1, 1}};
  launch.source += packed_source;
  if (p.experts > 0) launch.inputs.push_back("tandem_ids");
  return launch;
}

// Of experts in half precision.
CudaLaunch describe_dense(const Experts& experts, int pairs, int rows_shared) {
  constexpr int warps = 4, outputs = 4;
  const int blocks = (experts.out() + warps * outputs - 1) / (warps * outputs);
  return {"tandem_dense_experts",
          cuda_header,
          dense_source,
          {"x", "w", "tandem_ids"},
          {"result"},
          {{"T", experts.weight->dtype()},
           {"in", experts.in()},
           {"out", experts.out()},
           {"experts", experts.count()},
           {"rows_shared", rows_shared},
           {"warps", warps},
           {"outputs", outputs}},
          {blocks * warps * warp, pairs, 1},
          {warps * warp, 1, 1}};
}

CudaKernels& packed_kernels() {
  static CudaKernels kernels;
  return kernels;
}

}  // namespace

std::optional<mx::array> linear_on_cuda(const mx::array& x, const Matrix& matrix, mx::Stream s) {
  if (!is_cuda(s) || !matrix.affine || !fits(*matrix.affine, matrix.in())) return std::nullopt;
  const int in = matrix.in(), rows = static_cast<int>(x.size() / in);
  if (rows == 0 || rows > max_rows || has_gradient({x})) return std::nullopt;
  const Affine& a = *matrix.affine;
  const mx::Dtype dtype = a.scales.dtype();
  const Packed packed{in, matrix.out(), rows, a.group, dtype};
  mx::Shape shape = x.shape();
  shape.back() = packed.out;
  return packed_kernels()
      .run(
          packed.key(), [&] { return describe(packed); },
          {mx::astype(x, dtype, s), *matrix.weight, a.scales, a.biases}, {shape}, {dtype}, s)
      .front();
}

std::optional<mx::array> gather_on_cuda(const mx::array& x, const Experts& experts, const mx::array& ids,
                                        mx::Stream s) {
  const int pairs = static_cast<int>(ids.size()), in = experts.in(), out = experts.out();
  if (!is_cuda(s) || pairs == 0 || pairs > max_pairs || has_gradient({x, *experts.weight}))
    return std::nullopt;
  const int shared = x.ndim() == 2 ? ids.shape(1) : 1;
  const mx::Shape shape{ids.shape(0), ids.shape(1), out};
  const mx::array numbers = mx::astype(ids, mx::int32, s);
  if (experts.affine) {
    const Affine& a = *experts.affine;
    if (!fits(a, in)) return std::nullopt;
    const mx::Dtype dtype = a.scales.dtype();
    const Packed packed{in, out, 1, a.group, dtype, experts.count(), pairs, shared};
    return packed_kernels()
        .run(
            packed.key(), [&] { return describe(packed); },
            {mx::astype(x, dtype, s), *experts.weight, a.scales, a.biases, numbers}, {shape}, {dtype}, s)
        .front();
  }
  const mx::Dtype dtype = experts.weight->dtype();
  if (!is_half(dtype) || in % 8 != 0) return std::nullopt;
  static CudaKernels dense_kernels;
  return dense_kernels
      .run(
          {in, out, experts.count(), pairs, shared, number_of(dtype)},
          [&] { return describe_dense(experts, pairs, shared); },
          {mx::astype(x, dtype, s), *experts.weight, numbers}, {shape}, {dtype}, s)
      .front();
}

}  // namespace tandem::kernels
