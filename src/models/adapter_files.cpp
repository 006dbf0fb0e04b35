#include "models/adapter_files.h"

#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "weights/checkpoint.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;

}  // namespace

AdapterFiles::Kind AdapterFiles::read_kind(const std::filesystem::path& file) {
  const auto config = read_json_file(file);
  const auto wrong = [&](const std::string& why) {
    return InputError(fmt::format("{}: {}", file.string(), why));
  };
  const auto type = config.value("fine_tune_type", nlohmann::json("lora"));
  if (type != "lora" && type != "dora")
    throw wrong(fmt::format("fine_tune_type is {}; \"lora\" and \"dora\" can be loaded", type.dump()));
  const auto found = config.find("lora_parameters");
  if (found == config.end() || !found->is_object() || !found->contains("scale") ||
      !(*found)["scale"].is_number())
    throw wrong("lora_parameters has no number \"scale\"");
  const auto scale = (*found)["scale"].get<float>();
  if (!std::isfinite(scale)) throw wrong(fmt::format("the scale {} is too large", (*found)["scale"].dump()));
  return {scale, type == "dora"};
}

std::string AdapterFiles::linear_of(const std::string& tensor) const {
  std::vector<std::string> endings{down_ending, up_ending};
  if (magnitudes()) endings.emplace_back(magnitude_ending);
  for (const auto& ending : endings)
    if (tensor.ends_with(ending)) return tensor.substr(0, tensor.size() - ending.size());
  return {};
}

mx::array part_of(const mx::array& whole, const weights::Slice& slice) {
  mx::array part = mx::contiguous(weights::sliced(whole, slice, mx::Device::cpu), false, mx::Device::cpu);
  part.eval();
  return part;
}

AdapterFiles::AdapterFiles(const std::filesystem::path& folder)
    : kind_(read_kind(folder / "adapter_config.json")), file_(folder / "adapters.safetensors") {}

bool AdapterFiles::has(const std::string& linear) const {
  return file_.tensors().contains(linear + down_ending);
}

int AdapterFiles::rank(const std::string& linear) const {
  const auto& [name, info] = *file_.tensors().find(linear + down_ending);
  if (info.shape.size() < 2 || info.end == info.begin)
    throw InputError(fmt::format("{}: tensor \"{}\" has shape {}: it is no adapter's", file_.path().string(),
                                 name, nlohmann::json(info.shape).dump()));
  return static_cast<int>(info.shape[1]);
}

std::set<std::string> AdapterFiles::linears() const {
  std::set<std::string> all;
  for (const auto& [name, info] : file_.tensors()) all.insert(linear_of(name));
  all.erase("");
  return all;
}

mx::array AdapterFiles::read(const weights::Slice& slice) const {
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
  // What is cut along a later axis is read whole, adapters being small.
  const bool by_rows = slice.axis == 0;
  const std::uint64_t bytes = info.end - info.begin;
  const std::uint64_t skipped = by_rows ? bytes / slice.shape[0] * slice.part.begin : 0;
  mx::Shape shape(slice.shape.begin(), slice.shape.end());
  if (by_rows) shape[0] = slice.part.size();
  mx::array read = weights::allocated(shape, dtype, where);
  file_.read(info.begin + skipped, read.nbytes(), read.data<char>());
  if (!mx::all(mx::isfinite(read, mx::Device::cpu), mx::Device::cpu).item<bool>())
    throw InputError(where + " has numbers that are not finite: its training has diverged");
  return by_rows ? read : part_of(read, slice);
}

void AdapterFiles::check_all(const std::set<std::string>& linears) const {
  for (const auto& [name, info] : file_.tensors()) {
    if (!linears.contains(linear_of(name))) {
      throw InputError(
          fmt::format("{}: the model has no linear product for tensor \"{}\"", file_.path().string(), name));
    }
  }
}

}  // namespace tandem::models
