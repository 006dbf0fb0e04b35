#include "models/adapter.h"

#include <mlx/ops.h>

#include <set>

#include "models/adapter_files.h"
#include "models/visit.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;

// [a, b] turned over, in the dtype that products take, packed for a CPU.
kernels::Matrix matrix_from(const mx::array& turned, const kernels::Matrix& base) {
  const bool on_cpu = mx::default_device() == mx::Device::cpu;
  mx::Dtype dtype = mx::float32;
  if (!on_cpu) dtype = base.affine ? base.affine->scales.dtype() : base.weight->dtype();
  mx::array weight = mx::contiguous(mx::transpose(mx::astype(turned, dtype)));
  weight.eval();
  const kernels::Matrix matrix{weight, {}, {}};
  return on_cpu ? kernels::pack(matrix) : matrix;
}

}  // namespace

AdapterSlices adapter_slices(const ShardedLinear& linear, const weights::Slice& slice, int rank) {
  const bool by_inputs = slice.axis == 1, by_outputs = slice.axis == 0;
  // Where the matrix is quantised the slice counts words of several inputs.
  const int inputs = linear.weight.in() / (by_inputs ? slice.part.size() : slice.shape[1]);
  AdapterSlices slices{{linear.name + AdapterFiles::down_ending, {slice.shape[1] * inputs, rank}},
                       {linear.name + AdapterFiles::up_ending, {rank, slice.shape[0]}}};
  if (by_inputs) {
    slices.down.axis = 0;
    slices.down.part = {slice.part.begin * inputs, slice.part.end * inputs};
  }
  if (by_outputs) {
    slices.up.axis = 1;
    slices.up.part = slice.part;
  }
  return slices;
}

void load_adapter(Decoder& model, const weights::ShardedWeights& weights,
                  const std::filesystem::path& folder) {
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
    });
  }
  const bool whole = static_cast<int>(model.layers.size()) == model.config.layers;
  if (whole) adapters.check_all(read);
}

}  // namespace tandem::models
