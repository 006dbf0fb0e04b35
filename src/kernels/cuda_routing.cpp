#include "kernels/cuda_routing.h"

#include <mlx/ops.h>

#include <bit>
#include <string>
#include <vector>

#include "kernels/cuda_kernel.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

constexpr int warp = 32;
constexpr int most_experts = 1024;

// Inputs: logits and perhaps bias; outputs: ids, weights; constants: experts, chosen, groups, chosen_groups,
// sigmoid, best_two, normalised, scale_bits, first_held, end_held. A warp chooses for a row.
const char* const route_source = R"(
  constexpr int each = (experts + 31) / 32, size = experts / groups;
  constexpr float lowest = -3.4e38f;
  const int lane = threadIdx.x;
  const long long row = blockIdx.x;
  __shared__ float scores[experts], ranked[experts];
  __shared__ bool kept[groups];
  float top = lowest, total = 0;
  #pragma unroll
  for (int i = 0; i < each; ++i) {
    const int e = i * 32 + lane;
    if (e < experts) top = max(top, scores[e] = logits[row * experts + e]);
  }
  for (int distance = 16; distance > 0; distance /= 2) top = max(top, __shfl_xor_sync(0xffffffff, top, distance));
  #pragma unroll
  for (int i = 0; i < each; ++i) {
    const int e = i * 32 + lane;
    if (e >= experts) continue;
    scores[e] = sigmoid ? 1 / (1 + expf(-scores[e])) : expf(scores[e] - top);
    total += scores[e];
  }
  total = tandem::sum_of_warp(total);
  #pragma unroll
  for (int i = 0; i < each; ++i) {
    const int e = i * 32 + lane;
    if (e >= experts) continue;
    if (!sigmoid) scores[e] /= total;
    ranked[e] = scores[e];
    TANDEM_ADD_BIAS
  }
  __syncwarp();
  if (groups > chosen_groups) {
    float of_group = lowest, second = lowest;
    if (lane < groups) {
      for (int e = lane * size; e < (lane + 1) * size; ++e) {
        second = max(second, min(of_group, ranked[e]));
        of_group = max(of_group, ranked[e]);
      }
      if (best_two) of_group += second;
    }
    int better = 0;
    for (int g = 0; g < groups; ++g) {
      const float other = __shfl_sync(0xffffffff, of_group, g);
      if (other > of_group || (other == of_group && g < lane)) ++better;
    }
    if (lane < groups) kept[lane] = better < chosen_groups;
    __syncwarp();
    #pragma unroll
    for (int i = 0; i < each; ++i) {
      const int e = i * 32 + lane;
      if (e < experts && !kept[e / size]) ranked[e] = lowest;
    }
    __syncwarp();
  }
  float mine = 0, sum = 0;
  int my_id = 0;
  for (int k = 0; k < chosen; ++k) {
    float best = lowest;
    int expert = experts;
    #pragma unroll
    for (int i = 0; i < each; ++i) {
      const int e = i * 32 + lane;
      if (e < experts && (ranked[e] > best || expert == experts)) {
        best = ranked[e];
        expert = e;
      }
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(0xffffffff, best, distance);
      const int other_expert = __shfl_xor_sync(0xffffffff, expert, distance);
      if (other > best || (other == best && other_expert < expert)) {
        best = other;
        expert = other_expert;
      }
    }
    const float weight = scores[expert];
    sum += weight;
    if (lane == k) {
      mine = weight;
      my_id = expert;
    }
    __syncwarp();
    if (lane == 0) ranked[expert] = -INFINITY;
    __syncwarp();
  }
  if (lane >= chosen) return;
  const float scale = __int_as_float(scale_bits), factor = normalised ? scale / (sum + 1e-20f) : scale;
  const bool held = my_id >= first_held && my_id < end_held;
  ids[row * chosen + lane] = held ? my_id - first_held : 0;
  weights[row * chosen + lane] = held ? mine * factor : 0.0f;
)";

// Inputs: x, weights; output: y; constants: T, chosen, size. A thread sums one number.
const char* const sum_source = R"(
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  const long long row = blockIdx.y;
  if (at >= size) return;
  float sum = 0;
  #pragma unroll
  for (int k = 0; k < chosen; ++k)
    sum += weights[row * chosen + k] * tandem::to_float(x[(row * chosen + k) * size + at]);
  y[row * size + at] = T(sum);
)";

CudaLaunch describe(const Routing& r, int rows, bool has_bias) {
  CudaLaunch launch{.name = "tandem_route",
                    .header = cuda_header,
                    .source = route_source,
                    .inputs = {"logits"},
                    .outputs = {"ids", "weights"},
                    .constants = {{"experts", r.experts},
                                  {"chosen", r.chosen},
                                  {"groups", r.groups},
                                  {"chosen_groups", r.chosen_groups},
                                  {"sigmoid", r.score == Routing::Score::sigmoid},
                                  {"best_two", r.group_score == Routing::GroupScore::best_two},
                                  {"normalised", r.normalised},
                                  {"scale_bits", std::bit_cast<int>(r.scale)},
                                  {"first_held", r.first_held},
                                  {"end_held", r.end_held}},
                    .grid = {rows * warp, 1, 1},
                    .block = {warp, 1, 1}};
  const std::string place = "TANDEM_ADD_BIAS";
  launch.source.replace(launch.source.find(place), place.size(), has_bias ? "ranked[e] += bias[e];" : "");
  if (has_bias) launch.inputs.push_back("bias");
  return launch;
}

}  // namespace

std::optional<Routes> route_on_cuda(const mx::array& logits, const std::optional<mx::array>& bias,
                                    const Routing& r, mx::Stream s) {
  const int rows = logits.shape(0);
  const bool fits = is_cuda(s) && rows > 0 && logits.dtype() == mx::float32 && r.experts <= most_experts &&
                    r.groups <= warp && r.chosen <= warp;
  if (!fits) return std::nullopt;
  std::vector<mx::array> inputs{logits};
  if (bias) inputs.push_back(mx::astype(*bias, mx::float32, s));
  const mx::Shape shape{rows, r.chosen};
  static CudaKernels kernels;
  const auto made = kernels.run(
      {rows, r.experts, r.chosen, r.groups, r.chosen_groups, static_cast<int>(r.score),
       static_cast<int>(r.group_score), r.normalised, std::bit_cast<int>(r.scale), r.first_held, r.end_held,
       bias.has_value()},
      [&] { return describe(r, rows, bias.has_value()); }, inputs, {shape, shape}, {mx::int32, mx::float32},
      s);
  return Routes{made[0], made[1]};
}

std::optional<mx::array> weighted_sum_on_cuda(const mx::array& x, const mx::array& weights, mx::Stream s) {
  const mx::Dtype dtype = x.dtype();
  const int rows = x.shape(0), chosen = x.shape(1), size = x.shape(2);
  if (!is_cuda(s) || rows == 0 || !is_half(dtype) || weights.dtype() != mx::float32 ||
      has_gradient({x, weights}))
    return std::nullopt;
  constexpr int threads = 128;
  static CudaKernels kernels;
  return kernels
      .run(
          {rows, chosen, size, number_of(dtype)},
          [&] {
            return CudaLaunch{.name = "tandem_weighted_sum",
                              .header = cuda_header,
                              .source = sum_source,
                              .inputs = {"x", "weights"},
                              .outputs = {"y"},
                              .constants = {{"T", dtype}, {"chosen", chosen}, {"size", size}},
                              .grid = {(size + threads - 1) / threads * threads, rows, 1},
                              .block = {threads, 1, 1}};
          },
          {x, weights}, {{rows, size}}, {dtype}, s)
      .front();
}

}  // namespace tandem::kernels
