#include "models/adapter.h"

#include <fmt/format.h>
#include <mlx/allocator.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "models/visit.h"
#include "weights/checkpoint.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;

constexpr const char* down_ending = ".lora_a";
constexpr const char* up_ending = ".lora_b";

// The scale of every adapter.
float read_scale(const std::filesystem::path& file) {
  const auto config = read_json_file(file);
  const auto wrong = [&](const std::string& why) {
    return InputError(fmt::format("{}: {}", file.string(), why));
  };
  const std::string type = config.value("fine_tune_type", "lora");
  if (type != "lora") throw wrong(fmt::format("fine_tune_type is \"{}\"; \"lora\" can be loaded", type));
  const auto found = config.find("lora_parameters");
  if (found == config.end() || !found->is_object() || !found->contains("scale") ||
      !(*found)["scale"].is_number())
    throw wrong("lora_parameters has no number \"scale\"");
  return (*found)["scale"].get<float>();
}

// The tensors of one file, each read whole: adapters are small.
class Adapters {
 public:
  explicit Adapters(const std::filesystem::path& path) : file_(path) {}

  bool has(const std::string& name) const { return file_.tensors().contains(name); }
  int rank(const std::string& name) const {
    const auto& shape = file_.tensors().find(name)->second.shape;
    return shape.size() == 2 ? static_cast<int>(shape[1]) : 0;
  }
  mx::array read(const weights::Slice& slice) const {
    const auto found = file_.tensors().find(slice.name);
    const auto where = fmt::format("{}: tensor \"{}\"", file_.path().string(), slice.name);
    if (found == file_.tensors().end()) throw InputError(where + " is missing");
    const auto& info = found->second;
    const std::vector<std::int64_t> wanted(slice.shape.begin(), slice.shape.end());
    if (info.shape != wanted) {
      throw InputError(fmt::format("{} has shape {}, but the model needs {}: it is another model's adapter",
                                   where, nlohmann::json(info.shape).dump(), nlohmann::json(wanted).dump()));
    }
    const mx::Dtype dtype = weights::to_mlx(where, info.dtype, weights::Element::number);
    mx::array whole(mx::allocator::malloc(info.end - info.begin), {slice.shape[0], slice.shape[1]}, dtype);
    file_.read(info.begin, info.end - info.begin, whole.data<char>());
    return part_of(whole, slice);
  }
  // Throws where a name is not among those read.
  void check_all(const std::set<std::string>& read) const {
    for (const auto& [name, info] : file_.tensors()) {
      if (!read.contains(name)) {
        throw InputError(fmt::format("{}: the model has no linear product for tensor \"{}\"",
                                     file_.path().string(), name));
      }
    }
  }

 private:
  weights::SafetensorsFile file_;
};

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
  AdapterSlices slices{{linear.name + down_ending, {slice.shape[1] * inputs, rank}},
                       {linear.name + up_ending, {rank, slice.shape[0]}}};
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

mx::array part_of(const mx::array& whole, const weights::Slice& slice) {
  mx::Shape begin(whole.ndim(), 0), end = whole.shape();
  if (slice.axis >= 0) {
    begin[slice.axis] = slice.part.begin;
    end[slice.axis] = slice.part.end;
  }
  mx::array part = mx::contiguous(mx::slice(whole, begin, end, mx::Device::cpu), false, mx::Device::cpu);
  part.eval();
  return part;
}

void load_adapter(Decoder& model, const weights::ShardedWeights& weights,
                  const std::filesystem::path& folder) {
  const float scale = read_scale(folder / "adapter_config.json");
  const Adapters adapters(folder / "adapters.safetensors");
  std::set<std::string> read;
  for (auto& layer : model.layers) {
    for_each_linear(layer, [&](ShardedLinear& linear) {
      const std::string down = linear.name + down_ending;
      if (!adapters.has(down)) return;
      const auto slices =
          adapter_slices(linear, weights.slice_of(linear.name + ".weight"), adapters.rank(down));
      linear.adapter = Adapter{matrix_from(adapters.read(slices.down), linear.weight),
                               matrix_from(adapters.read(slices.up), linear.weight), scale};
      read.insert({slices.down.name, slices.up.name});
    });
  }
  const bool whole = static_cast<int>(model.layers.size()) == model.config.layers;
  if (whole) adapters.check_all(read);
}

}  // namespace tandem::models
