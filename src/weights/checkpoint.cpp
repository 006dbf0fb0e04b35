#include "weights/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <mlx/allocator.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;
using nlohmann::json;

constexpr const char* single_file = "model.safetensors";
constexpr const char* index_file = "model.safetensors.index.json";

mx::Dtype to_mlx(const std::string& name, const std::string& dtype, bool codes) {
  if (codes && dtype == "U32") return mx::uint32;
  if (codes) throw InputError(fmt::format("tensor \"{}\" is {}; quantized weights are U32", name, dtype));
  if (dtype == "F32") return mx::float32;
  if (dtype == "F16") return mx::float16;
  if (dtype == "BF16") return mx::bfloat16;
  throw InputError(
      fmt::format("tensor \"{}\" is {}; this version reads F32, F16 and BF16 weights", name, dtype));
}

// Tensor name → file name, from the index.
std::map<std::string, std::string> read_index(const fs::path& file) {
  const json index = read_json_file(file);
  if (!index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw InputError(fmt::format("{}: it has no \"weight_map\" object", file.string()));
  }
  std::map<std::string, std::string> map;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || shard.get<std::string>().find('/') != std::string::npos) {
      throw InputError(
          fmt::format("{}: \"{}\" is in {}, which is no file name", file.string(), name, shard.dump()));
    }
    map[name] = shard.get<std::string>();
  }
  return map;
}

}  // namespace

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  if (!fs::is_directory(folder)) throw InputError(fmt::format("{} is no folder", folder.string()));
  const auto open = [&](const std::string& name) -> const SafetensorsFile& {
    auto found = files_.find(name);
    if (found == files_.end()) found = files_.emplace(name, SafetensorsFile(folder / name)).first;
    return found->second;
  };
  if (fs::exists(folder / single_file)) {
    const auto& file = open(single_file);
    for (const auto& [name, info] : file.tensors()) where_[name] = {&file, &info};
    return;
  }
  if (!fs::exists(folder / index_file)) {
    throw InputError(fmt::format("{} has neither {} nor {}", folder.string(), single_file, index_file));
  }
  for (const auto& [name, shard] : read_index(folder / index_file)) {
    const auto& file = open(shard);
    const auto found = file.tensors().find(name);
    if (found == file.tensors().end()) {
      throw InputError(fmt::format("{} says that \"{}\" is in {}, but it is not there",
                                   (folder / index_file).string(), name, shard));
    }
    where_[name] = {&file, &found->second};
  }
}

const Checkpoint::Place& Checkpoint::place(const std::string& name) const {
  const auto found = where_.find(name);
  if (found == where_.end()) {
    throw InputError(
        fmt::format("{} has no tensor \"{}\", which its config.json asks for", folder_.string(), name));
  }
  return found->second;
}

std::uint64_t Checkpoint::slice_bytes(const std::string& name, int axis, parallel::Range part) const {
  const TensorInfo& info = *place(name).tensor;
  const std::uint64_t all = info.end - info.begin;
  if (axis < 0 || axis >= static_cast<int>(info.shape.size()) || info.shape[axis] == 0) return all;
  return all / static_cast<std::uint64_t>(info.shape[axis]) * static_cast<std::uint64_t>(part.size());
}

mx::array Checkpoint::read(const std::string& name, const std::vector<int>& expected, int axis,
                           parallel::Range part, const OnBytes& on_bytes, bool codes) const {
  const auto& [file, info] = place(name);
  if (!std::equal(expected.begin(), expected.end(), info->shape.begin(), info->shape.end())) {
    throw InputError(fmt::format("{}: tensor \"{}\" has shape [{}], but config.json makes it [{}]",
                                 file->path().string(), name, fmt::join(info->shape, ", "),
                                 fmt::join(expected, ", ")));
  }
  const mx::Dtype dtype = to_mlx(name, info->dtype, codes);

  // The slice as `runs` pieces of `run_bytes`, `stride_bytes` apart in the file.
  mx::Shape shape(expected.begin(), expected.end());
  std::uint64_t runs = 1, run_bytes = info->end - info->begin, stride_bytes = 0, first = info->begin;
  if (axis >= 0) {
    std::uint64_t inner = mx::size_of(dtype);
    for (std::size_t i = axis + 1; i < expected.size(); ++i) inner *= static_cast<std::uint64_t>(expected[i]);
    for (int i = 0; i < axis; ++i) runs *= static_cast<std::uint64_t>(expected[i]);
    stride_bytes = inner * static_cast<std::uint64_t>(expected[axis]);
    run_bytes = inner * static_cast<std::uint64_t>(part.size());
    first += inner * static_cast<std::uint64_t>(part.begin);
    shape[axis] = part.size();
    if (run_bytes == stride_bytes) {
      run_bytes *= runs;
      runs = 1;
    }
  }

  mx::array slice(mx::allocator::malloc(runs * run_bytes), shape, dtype);
  char* target = slice.data<char>();
  std::uint64_t unreported = 0;
  for (std::uint64_t run = 0; run < runs; ++run) {
    for (std::uint64_t done = 0; done < run_bytes;) {
      const auto bytes = std::min<std::uint64_t>(run_bytes - done, limits::read_chunk_bytes);
      file->read(first + run * stride_bytes + done, bytes, target);
      target += bytes;
      done += bytes;
      unreported += bytes;
      if (unreported >= limits::read_chunk_bytes) {
        on_bytes(unreported);
        unreported = 0;
      }
    }
  }
  on_bytes(unreported);
  return slice;
}

}  // namespace tandem::weights
