#include "models/adapter.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <set>

#include "kernels/linear.h"
#include "models/adapter_files.h"
#include "models/visit.h"
#include "parallel/collectives.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;

constexpr float smallest_square = 1e-30F;  // of a row's norm: one of zeros has a magnitude of 0 over it

// In the dtype that products with `base`, a Matrix or Experts, take.
template <class Base>
mx::array as_product(const mx::array& x, const Base& base) {
  mx::Dtype dtype = mx::float32;
  if (!kernels::on_cpu()) dtype = base.affine ? base.affine->scales.dtype() : base.weight->dtype();
  mx::array made = mx::contiguous(mx::astype(x, dtype));
  made.eval();
  return made;
}

// [a, b] turned over, packed for a CPU.
kernels::Matrix matrix_from(const mx::array& turned, const kernels::Matrix& base) {
  const kernels::Matrix matrix{as_product(mx::transpose(turned), base), {}, {}};
  return kernels::on_cpu() ? kernels::pack(matrix) : matrix;
}

kernels::Experts experts_from(const mx::array& stack, const kernels::Experts& base) {
  const kernels::Experts experts{as_product(stack, base), {}, {}};
  return kernels::on_cpu() ? kernels::pack(experts) : experts;
}

mx::array all_rows(const kernels::Matrix& matrix) {
  return mx::astype(kernels::rows(matrix, mx::arange(matrix.out(), mx::int32)), mx::float32);
}

}  // namespace

AdapterSlices adapter_slices(const ShardedLinear& linear, const weights::Slice& slice, int rank) {
  const bool by_inputs = slice.axis == 1, by_outputs = slice.axis == 0;
  // Where the matrix is quantised the slice counts words of several inputs.
  const int inputs = linear.weight.in() / (by_inputs ? slice.part.size() : slice.shape[1]);
  AdapterSlices slices{{linear.name + AdapterFiles::down_ending, {slice.shape[1] * inputs, rank}},
                       {linear.name + AdapterFiles::up_ending, {rank, slice.shape[0]}},
                       {linear.name + AdapterFiles::magnitude_ending, {slice.shape[0]}}};
  if (by_inputs) {
    slices.down.axis = 0;
    slices.down.part = {slice.part.begin * inputs, slice.part.end * inputs};
  }
  if (by_outputs) {
    slices.up.axis = 1;
    slices.up.part = slice.part;
    slices.magnitude.axis = 0;
    slices.magnitude.part = slice.part;
  }
  return slices;
}

AdapterSlices adapter_slices(const ShardedExperts& experts, int rank) {
  const auto& place = experts.place;
  const int count = place.shape[0], out = place.shape[1], in = place.shape[2];
  AdapterSlices slices{{place.name + AdapterFiles::down_ending, {count, rank, in}},
                       {place.name + AdapterFiles::up_ending, {count, out, rank}},
                       {}};
  for (auto* slice : {&slices.down, &slices.up}) {
    const bool by_inputs = slice == &slices.down;
    if (place.axis != 0 && place.axis != (by_inputs ? 2 : 1)) continue;
    slice->axis = place.axis;
    slice->part = place.part;
  }
  return slices;
}

// |w + s · up · down|² = |w|² + up · (2 s · down · w + s² · down · downᵀ · up), so that no matrix is made
// anew.
mx::array adapted_norms(const ShardedLinear& linear, const mx::array& squares, const Group& group) {
  const Adapter& adapter = *linear.adapter;
  const mx::array down = all_rows(adapter.down), up = all_rows(adapter.up);  // [rank, in], [out, rank]
  const mx::array scale(adapter.scale);
  const mx::array by_weight = mx::astype(kernels::linear(down, linear.weight), mx::float32);  // [rank, out]
  const mx::array by_down = mx::matmul(up, mx::matmul(down, mx::transpose(down)));            // [out, rank]
  const mx::array both =
      mx::add(mx::multiply(mx::array(2.0F), mx::transpose(by_weight)), mx::multiply(scale, by_down));
  mx::array sums = mx::add(squares, mx::multiply(scale, mx::sum(mx::multiply(up, both), 1)));
  if (linear.reduce == parallel::Reduce::sum) sums = parallel::sum(sums, group);
  return mx::sqrt(mx::maximum(sums, mx::array(smallest_square)));
}

void load_adapter(Decoder& model, const weights::ShardedWeights& weights, const std::filesystem::path& folder,
                  const Group& group) {
  const AdapterFiles adapters(folder);
  std::set<std::string> read;
  for (auto& layer : model.layers) {
    for_each_linear(layer, [&](ShardedLinear& linear) {
      if (!adapters.has(linear.name)) return;
      const auto slices =
          adapter_slices(linear, weights.slice_of(linear.name + ".weight"), adapters.rank(linear.name));
      linear.adapter = Adapter{matrix_from(adapters.read(slices.down), linear.weight),
                               matrix_from(adapters.read(slices.up), linear.weight), adapters.scale()};
      read.insert(linear.name);
      if (!adapters.magnitudes()) return;
      const mx::array magnitude = mx::astype(adapters.read(slices.magnitude), mx::float32);
      const mx::array squares = kernels::row_squares(linear.weight);
      linear.adapter->gain = mx::divide(magnitude, adapted_norms(linear, squares, group));
    });
    for_each_experts(layer, [&](ShardedExperts& experts) {
      const std::string& name = experts.place.name;
      if (!adapters.has(name) || adapters.magnitudes()) return;  // there is no DoRA of experts
      const auto slices = adapter_slices(experts, adapters.rank(name));
      experts.adapter =
          ExpertsAdapter{experts_from(adapters.read(slices.down), experts.weight),
                         experts_from(adapters.read(slices.up), experts.weight), adapters.scale()};
      read.insert(name);
    });
  }
  const bool whole = static_cast<int>(model.layers.size()) == model.config.layers;
  if (whole) adapters.check_all(read);
}

void complete_adapter(Decoder& model) {
  for (auto& layer : model.layers) {
    for_each_linear(layer, [](ShardedLinear& linear) {
      if (linear.adapter && linear.adapter->gain) linear.adapter->gain->eval();
    });
  }
}

}  // namespace tandem::models
