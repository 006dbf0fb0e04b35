#include "weights/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "weights/checksum.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;
using nlohmann::json;

constexpr const char* single_file = "model.safetensors";
constexpr const char* index_file = "model.safetensors.index.json";

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

json identity_of(const fs::path& path) {
  std::error_code error;
  const auto blob = fs::read_symlink(path, error).filename().string();
  if (!error && checksum_from_hex(blob)) return blob;
  const auto changed = fs::last_write_time(path).time_since_epoch();
  return {fs::file_size(path), std::chrono::duration_cast<std::chrono::nanoseconds>(changed).count()};
}

}  // namespace

bool is_checkpoint(const fs::path& folder) {
  return fs::exists(folder / single_file) || fs::exists(folder / index_file);
}

mx::Dtype to_mlx(const std::string& where, const std::string& dtype, Element element) {
  if (element == Element::codes && dtype == "U32") return mx::uint32;
  if (element == Element::codes)
    throw InputError(fmt::format("{} is {}, but has \".scales\"; quantized weights are U32", where, dtype));
  if (element == Element::fp8 && dtype == "F8_E4M3") return mx::uint8;
  if (element == Element::fp8)
    throw InputError(fmt::format("{} is {}, but has a \"weight_scale_inv\"; F8_E4M3 has", where, dtype));
  if (dtype == "U32")
    throw InputError(fmt::format("{} is quantized (U32), but its \".scales\" is missing", where));
  if (dtype == "F8_E4M3")
    throw InputError(
        fmt::format("{} is F8_E4M3, which needs its \"weight_scale_inv\" beside it and "
                    "\"quantization_config\" in config.json",
                    where));
  if (dtype == "F32") return mx::float32;
  if (dtype == "F16") return mx::float16;
  if (dtype == "BF16") return mx::bfloat16;
  throw InputError(fmt::format("{} is {}; this version reads F32, F16 and BF16 here", where, dtype));
}

std::uint64_t slice_bytes(const TensorInfo& info, const Slice& slice) {
  const std::uint64_t all = info.end - info.begin;
  const int axis = slice.axis;
  if (axis < 0 || axis >= static_cast<int>(info.shape.size()) || info.shape[axis] == 0) return all;
  return all / static_cast<std::uint64_t>(info.shape[axis]) * static_cast<std::uint64_t>(slice.part.size());
}

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

std::vector<fs::path> Checkpoint::files() const {
  std::vector<fs::path> paths;
  for (const auto& [name, file] : files_) paths.push_back(file.path());
  return paths;
}

TensorTable Checkpoint::tensors() const {
  TensorTable table;
  for (const auto& [name, place] : where_) table.emplace(name, *place.tensor);
  return table;
}

std::string Checkpoint::identity() const {
  json files = json::object();
  for (const auto& [name, file] : files_) files[name] = identity_of(file.path());
  return sha256_of(files.dump(-1, ' ', true, json::error_handler_t::replace));
}

std::uint64_t Checkpoint::bytes(const Slice& slice) const {
  return slice_bytes(*place(slice.name).tensor, slice);
}

mx::array Checkpoint::read(const Slice& slice, const OnBytes& on_bytes) const {
  const auto& [file, info] = place(slice.name);
  const auto where = fmt::format("{}: tensor \"{}\"", file->path().string(), slice.name);
  const mx::Dtype dtype = to_mlx(where, info->dtype, slice.element);
  if (!std::equal(slice.shape.begin(), slice.shape.end(), info->shape.begin(), info->shape.end())) {
    throw InputError(fmt::format("{} has shape [{}], but config.json makes it [{}]", where,
                                 fmt::join(info->shape, ", "), fmt::join(slice.shape, ", ")));
  }
  const std::uint64_t size = mx::size_of(dtype);
  const Pieces pieces = pieces_of(slice);
  const std::uint64_t run_bytes = pieces.run * size;

  mx::array made = allocated(slice, dtype);
  char* target = made.data<char>();
  std::uint64_t unreported = 0;
  for (std::uint64_t run = 0; run < pieces.runs; ++run) {
    for (std::uint64_t done = 0; done < run_bytes;) {
      const auto bytes = std::min<std::uint64_t>(run_bytes - done, limits::read_chunk_bytes);
      file->read(info->begin + (pieces.first + run * pieces.stride) * size + done, bytes, target);
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
  return made;
}

}  // namespace tandem::weights
