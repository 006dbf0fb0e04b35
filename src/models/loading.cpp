#include "models/loading.h"

#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

namespace tandem::models {
namespace {

namespace mx = mlx::core;
using weights::ShardedWeights;
using weights::StoredMatrix;

std::optional<kernels::Affine> affine_of(const StoredMatrix& stored) {
  if (!stored.scales) return std::nullopt;
  return kernels::Affine{*stored.scales, *stored.biases, stored.quantisation.group, stored.quantisation.bits};
}

// What is trained stays as it is: its gradient is one by the array.
bool packs(const ShardedWeights& weights) { return kernels::on_cpu() && !weights.bound(); }

kernels::Matrix matrix_from(const StoredMatrix& stored, bool packs) {
  const kernels::Matrix matrix{stored.weight, affine_of(stored), nullptr};
  return packs ? kernels::pack(matrix) : matrix;
}

}  // namespace

mx::array dense(const StoredMatrix& matrix) {
  if (!matrix.scales) return matrix.weight;
  const mx::Device cpu = mx::Device::cpu;
  mx::array whole = mx::dequantize(matrix.weight, mx::astype(*matrix.scales, mx::float32, cpu),
                                   mx::astype(*matrix.biases, mx::float32, cpu), matrix.quantisation.group,
                                   matrix.quantisation.bits, "affine", std::nullopt, std::nullopt, cpu);
  whole.eval();
  return whole;
}

void settle(const ShardedWeights& weights, std::vector<mx::array> made) {
  if (!weights.bound()) mx::eval(std::move(made));
}

mx::array take_vector(const ShardedWeights& weights, const std::string& name) {
  mx::array vector = weights.take(name);
  if (kernels::on_cpu()) vector = mx::astype(vector, mx::float32);
  settle(weights, {vector});
  return vector;
}

ShardedLinear take_linear(const ShardedWeights& weights, const std::string& name) {
  const std::string weight = name + ".weight", bias = name + ".bias";
  ShardedLinear linear{.weight = matrix_from(weights.take_matrix(weight), packs(weights)),
                       .bias = std::nullopt,
                       .reduce = weights.reduce_of(weight),
                       .parts = {},
                       .name = name};
  if (weights.has(bias)) linear.bias = take_vector(weights, bias);
  return linear;
}

void join(const ShardedWeights& weights, const std::vector<ShardedLinear*>& matrices) {
  if (kernels::on_cpu() || weights.bound()) return;
  std::vector<kernels::Matrix*> joined;
  for (auto* matrix : matrices) joined.push_back(&matrix->weight);
  kernels::join(joined);
}

kernels::Matrix take_float32(const ShardedWeights& weights, const std::string& name) {
  mx::array whole = mx::astype(dense(weights.take_matrix(name + ".weight")), mx::float32, mx::Device::cpu);
  settle(weights, {whole});
  return matrix_from({whole, {}, {}, {}}, packs(weights));
}

kernels::Experts experts_from(const ShardedWeights& weights, const StoredMatrix& stack) {
  const kernels::Experts experts{stack.weight, affine_of(stack), {}};
  return packs(weights) ? kernels::pack(experts) : experts;
}

kernels::Experts take_stack(const ShardedWeights& weights, const std::string& name) {
  return experts_from(weights, weights.take_matrix(name + ".weight"));
}

kernels::Experts take_experts(const ShardedWeights& weights, const std::string& prefix,
                              const parallel::Range& experts, const std::string& name) {
  std::vector<kernels::Matrix> packed;
  std::vector<mx::array> values, scales, biases;
  weights::Quantisation quantisation;
  for (int e = experts.begin; e < experts.end; ++e) {
    const StoredMatrix stored = weights.take_matrix(fmt::format("{}.{}.{}.weight", prefix, e, name));
    if (packs(weights)) {
      packed.push_back(matrix_from(stored, true));
      continue;
    }
    quantisation = stored.quantisation;
    values.push_back(stored.weight);
    if (stored.scales) {
      scales.push_back(*stored.scales);
      biases.push_back(*stored.biases);
    }
  }
  if (packs(weights)) return kernels::experts_of(packed);
  StoredMatrix stack{mx::stack(values), {}, {}, quantisation};
  settle(weights, {stack.weight});
  if (!scales.empty()) {
    stack.scales = mx::stack(scales);
    stack.biases = mx::stack(biases);
    settle(weights, {*stack.scales, *stack.biases});
  }
  return experts_from(weights, stack);
}

std::size_t bytes_of_one(const kernels::Experts& experts) {
  if (!experts.packed.empty()) return experts.packed.front()->bytes();
  const std::size_t affine =
      experts.affine ? experts.affine->scales.nbytes() + experts.affine->biases.nbytes() : 0;
  return (experts.weight->nbytes() + affine) / static_cast<std::size_t>(experts.count());
}

}  // namespace tandem::models
