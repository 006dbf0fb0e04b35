#include "weights/shard_table.h"

#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>

#include "base/error.h"
#include "weights/fp8.h"

namespace tandem::weights {
namespace {

namespace mx = mlx::core;
using parallel::Dim;

constexpr Quantisation fp8_quantised{8, 64};

int axis_of(const ShardRule& rule, const parallel::Shard& shard) {
  const bool stacked = rule.shape.front() == Dim::experts && rule.split_axis >= 0;
  return stacked && shard.experts.size() < shard.sizes.experts ? 0 : rule.split_axis;
}

// The tensor of which each element of the last axis stands for `inputs` inputs.
Slice make_slice(const std::string& name, const ShardRule& rule, const parallel::Shard& shard,
                 int inputs = 1) {
  Slice slice{name, {}, axis_of(rule, shard), {}};
  for (const auto dim : rule.shape) slice.shape.push_back(shard.whole(dim));
  slice.shape.back() /= inputs;
  if (slice.axis < 0) return slice;
  slice.part = shard.part(rule.shape[slice.axis]);
  if (slice.axis + 1 == static_cast<int>(rule.shape.size())) {
    slice.part = {slice.part.begin / inputs, slice.part.end / inputs};
  }
  return slice;
}

// "a*b" with the number in place of the first star.
std::string with_number(const std::string& pattern, int number) {
  const auto star = pattern.find('*');
  return fmt::format("{}{}{}", pattern.substr(0, star), number, pattern.substr(star + 1));
}

std::string stem_of(const std::string& name) { return name.substr(0, name.rfind('.')); }

}  // namespace

ShardedWeights::ShardedWeights(Source& source, const std::vector<ShardRule>& rules, Formats formats,
                               const parallel::Shard& shard, int first_layer, int end_layer, OnBytes on_bytes)
    : source_(source), formats_(std::move(formats)), on_bytes_(std::move(on_bytes)) {
  for (const auto& rule : rules) {
    if (rule.name.find('*') == std::string::npos) {
      add(rule.name, rule, shard, -1);
      continue;
    }
    for (int layer = first_layer; layer < end_layer; ++layer) {
      const auto& layers = rule.layers;
      if (!layers.empty() && std::find(layers.begin(), layers.end(), layer) == layers.end()) continue;
      const std::string name = with_number(rule.name, layer);
      if (name.find('*') == std::string::npos) {
        add(name, rule, shard, layer);
        continue;
      }
      for (int e = shard.experts.begin; e < shard.experts.end; ++e)
        add(with_number(name, e), rule, shard, layer);
    }
  }
  source.expect(in_order_of_taking());
}

// What belongs to no layer, then layer by layer, as models take them.
std::vector<Slice> ShardedWeights::in_order_of_taking() const {
  std::vector<const Tensor*> tensors;
  for (const auto& name : names_) tensors.push_back(&tensors_.at(name));
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const Tensor* a, const Tensor* b) { return a->layer < b->layer; });
  std::vector<Slice> slices;
  for (const auto* tensor : tensors) {
    slices.push_back(tensor->slice);
    for (const auto& beside : {tensor->scales, tensor->biases, tensor->fp8_scales}) {
      if (beside) slices.push_back(*beside);
    }
  }
  return slices;
}

void ShardedWeights::count(const Slice& slice, bool replicated) {
  bytes_ += source_.bytes(slice);
  if (replicated) replicated_bytes_ += source_.bytes(slice);
}

void ShardedWeights::add(const std::string& name, const ShardRule& rule, const parallel::Shard& shard,
                         int layer) {
  Tensor tensor{make_slice(name, rule, shard), rule.reduce, {}, {}, {}, {}, layer};
  const std::string stem = stem_of(name);
  const bool of_expert = rule.name.find('*') != rule.name.rfind('*');
  const bool matrix = rule.shape.size() >= 2, replicated = tensor.slice.axis < 0 && !of_expert;
  if (matrix && source_.has(stem + ".scales")) {
    tensor.quantisation = formats_.of(stem);
    const auto [bits, group] = tensor.quantisation;
    if (const int inputs = shard.whole(rule.shape.back()); inputs % group != 0) {
      throw InputError(fmt::format(
          "tensor \"{}\" has {} inputs, not a multiple of its quantization's groups of {} in config.json",
          name, inputs, group));
    }
    tensor.slice = make_slice(name, rule, shard, 32 / bits);
    tensor.slice.element = Element::codes;
    tensor.scales = make_slice(stem + ".scales", rule, shard, group);
    tensor.biases = make_slice(stem + ".biases", rule, shard, group);
    count(*tensor.scales, replicated);
    count(*tensor.biases, replicated);
  } else if (matrix && source_.has(name + "_scale_inv") && formats_.fp8_block > 0) {
    tensor.slice.element = Element::fp8;
    const auto blocks = [&](Dim dim) {
      return (shard.whole(dim) + formats_.fp8_block - 1) / formats_.fp8_block;
    };
    tensor.fp8_scales = Slice{name + "_scale_inv", {blocks(rule.shape[0]), blocks(rule.shape[1])}};
    count(*tensor.fp8_scales, true);
  }
  count(tensor.slice, replicated);
  if (tensors_.emplace(name, std::move(tensor)).second) names_.push_back(name);
}

mx::array ShardedWeights::take(const std::string& name) const {
  if (bound()) return bound_.at(name);
  return source_.read(tensors_.at(name).slice, on_bytes_);
}

StoredMatrix ShardedWeights::take_matrix(const std::string& name) const {
  if (bound()) return {bound_.at(name), {}, {}, {}};
  const Tensor& tensor = tensors_.at(name);
  if (tensor.fp8_scales) return take_fp8(tensor);
  StoredMatrix matrix{source_.read(tensor.slice, on_bytes_), {}, {}, tensor.quantisation};
  if (tensor.scales) {
    matrix.scales = source_.read(*tensor.scales, on_bytes_);
    matrix.biases = source_.read(*tensor.biases, on_bytes_);
  }
  return matrix;
}

StoredMatrix ShardedWeights::take_fp8(const Tensor& tensor) const {
  const Slice& slice = tensor.slice;
  const int first_row = slice.axis == 0 ? slice.part.begin : 0,
            first_column = slice.axis == 1 ? slice.part.begin : 0;
  const bool quantised =
      formats_.fp8_as == Fp8As::quantised && slice.part_shape().back() % fp8_quantised.group == 0;
  const mx::Dtype dtype = formats_.fp8_as == Fp8As::float32 || quantised ? mx::float32 : mx::bfloat16;
  const mx::array dense =
      dequantise_fp8(source_.read(slice, on_bytes_), source_.read(*tensor.fp8_scales, on_bytes_),
                     formats_.fp8_block, first_row, first_column, dtype);
  if (!quantised) return {dense, {}, {}, {}};
  auto parts =
      mx::quantize(dense, fp8_quantised.group, fp8_quantised.bits, "affine", std::nullopt, mx::Device::cpu);
  mx::eval(parts);
  return {parts[0], parts[1], parts[2], fp8_quantised};
}

}  // namespace tandem::weights
