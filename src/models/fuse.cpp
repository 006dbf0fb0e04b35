#include "models/fuse.h"

#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "models/adapter_files.h"
#include "models/config.h"
#include "models/model_files.h"
#include "weights/checkpoint.h"
#include "weights/safetensors_writer.h"

namespace tandem::models {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;

mx::array floats(const mx::array& x) { return mx::astype(x, mx::float32, mx::Device::cpu); }

class Fuser {
 public:
  Fuser(const fs::path& model, const fs::path& adapter, const FuseWatcher& watcher)
      : config_(load_config(model)), source_(model), adapters_(adapter), watcher_(watcher) {
    if (config_.formats.fp8_block > 0) {
      throw InputError(
          fmt::format("{} is in FP8, which an adapter cannot be added to: quantise it first (tandem "
                      "quantize), or train on "
                      "its bfloat16 form",
                      model.string()));
    }
    std::set<std::string> known;
    for (const auto& [name, info] : source_.tensors()) {
      progress_.total_bytes += info.end - info.begin;
      if (!name.ends_with(".weight") || info.shape.size() < 2) continue;
      const std::string linear = name.substr(0, name.size() - 7);
      const auto [adapter, experts, expert] = target_of(linear);
      // There is no DoRA of experts.
      if (experts && (adapters_.magnitudes() || expert.value_or(0) >= config_.sizes.experts)) continue;
      known.insert(adapter);
      adapted_.insert(linear);
    }
    adapters_.check_all(known);
    const auto wanted = adapters_.linears();
    std::erase_if(adapted_, [&](const auto& linear) { return !wanted.contains(target_of(linear).adapter); });
    for (const auto& linear : adapted_) check(linear);
    progress_.matrices = adapted_.size();
  }

  std::uint64_t total_bytes() const { return progress_.total_bytes; }

  // Each of the model's files anew, under its name.
  FuseProgress write(const fs::path& out) {
    for (const auto& path : source_.files()) write_file(path, out / path.filename());
    return progress_;
  }

 private:
  // What of the adapters a matrix takes.
  struct Target {
    std::string adapter;
    bool experts = false;            // the adapter is a stack, one for each expert
    std::optional<int> expert = {};  // of it, where the matrix is no stack itself
  };
  static Target target_of(const std::string& linear) {
    const std::string single = ".mlp.experts.", stack = ".mlp.switch_mlp.";
    const auto at = linear.find(single);
    if (at == linear.npos) return {linear, linear.find(stack) != linear.npos};
    const std::string rest = linear.substr(at + single.size());  // "7.gate_proj"
    return {linear.substr(0, at) + stack + rest.substr(rest.find('.') + 1), true, std::atoi(rest.c_str())};
  }

  // In the order in which they lie.
  static std::vector<weights::TensorSpec> specs_of(const weights::SafetensorsFile& file) {
    std::vector<std::pair<std::uint64_t, weights::TensorSpec>> placed;
    for (const auto& [name, info] : file.tensors())
      placed.push_back({info.begin, {name, info.dtype, info.shape}});
    std::stable_sort(placed.begin(), placed.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<weights::TensorSpec> specs;
    for (auto& [begin, spec] : placed) specs.push_back(std::move(spec));
    return specs;
  }

  void write_file(const fs::path& from, const fs::path& to) {
    const weights::SafetensorsFile file(from);
    const auto specs = specs_of(file);
    weights::SafetensorsWriter writer(to, specs);
    std::set<std::string> done;  // of the adapted matrices, whose tensors need not be neighbours
    for (const auto& spec : specs) {
      const auto dot = spec.name.rfind('.');
      const std::string linear = spec.name.substr(0, dot), ending = spec.name.substr(dot + 1);
      if (!adapted_.contains(linear) || (ending != "weight" && ending != "scales" && ending != "biases")) {
        copy(file, spec.name, writer);
      } else if (done.insert(linear).second) {
        for (const auto& [part, array] : fused(linear)) {
          const std::string name = linear + '.' + part;
          if (file.tensors().contains(name)) put(writer, name, 0, {array.data<char>(), array.nbytes()});
        }
        if (file.tensors().contains(linear + ".weight")) ++progress_.fused;
      }
    }
    writer.finish();
  }

  void copy(const weights::SafetensorsFile& file, const std::string& name,
            weights::SafetensorsWriter& writer) {
    const auto& info = file.tensors().find(name)->second;
    const std::uint64_t bytes = info.end - info.begin;
    std::string piece;
    for (std::uint64_t at = 0; at < bytes; at += piece.size()) {
      piece.resize(std::min<std::uint64_t>(bytes - at, limits::read_chunk_bytes));
      file.read(info.begin + at, piece.size(), piece.data());
      put(writer, name, at, piece);
    }
  }

  void put(weights::SafetensorsWriter& writer, const std::string& name, std::uint64_t at,
           std::string_view bytes) {
    if (watcher_.stopped()) throw FuseStopped();
    writer.write(name, at, bytes);
    progress_.there_bytes += bytes.size();
    watcher_.progress(progress_);
  }

  mx::array read(const std::string& name, weights::Element element) const {
    const auto& shape = source_.info(name).shape;
    return source_.read({name, {shape.begin(), shape.end()}, -1, {}, element}, [](std::uint64_t) {});
  }

  // That all its parts are there and of the matrix's shape.
  void check(const std::string& linear) const {
    const auto& shape = source_.info(linear + ".weight").shape;
    const int out = static_cast<int>(shape[shape.size() - 2]);
    int in = static_cast<int>(shape.back());
    if (source_.has(linear + ".scales")) in = in * 32 / config_.formats.of(linear).bits;
    halves(linear, out, in);
    if (adapters_.magnitudes()) magnitudes(linear, out);
  }

  // float32, as the product takes them: down [rank, in], up [out, rank], of a stack [E, rank, in] and so on.
  struct Halves {
    mx::array down, up;
  };
  Halves halves(const std::string& linear, int out, int in) const {
    const mx::Device cpu = mx::Device::cpu;
    const auto [adapter, experts, expert] = target_of(linear);
    const int rank = adapters_.has(adapter) ? adapters_.rank(adapter) : 0, count = config_.sizes.experts;
    weights::Slice down{adapter + AdapterFiles::down_ending, {in, rank}};
    weights::Slice up{adapter + AdapterFiles::up_ending, {rank, out}};
    if (!experts) {
      return {mx::transpose(floats(adapters_.read(down)), cpu),
              mx::transpose(floats(adapters_.read(up)), cpu)};
    }
    down.shape = {count, rank, in};
    up.shape = {count, out, rank};
    if (!expert) return {floats(adapters_.read(down)), floats(adapters_.read(up))};
    for (auto* slice : {&down, &up}) slice->axis = 0, slice->part = {*expert, *expert + 1};
    return {mx::squeeze(floats(adapters_.read(down)), 0, cpu),
            mx::squeeze(floats(adapters_.read(up)), 0, cpu)};
  }

  mx::array magnitudes(const std::string& linear, int out) const {
    return floats(adapters_.read({linear + AdapterFiles::magnitude_ending, {out}}));
  }

  // `weight` and what the adapter adds: [out, in] float32, of a stack [E, out, in].
  mx::array adapted(const std::string& linear, const mx::array& weight) const {
    const mx::Device cpu = mx::Device::cpu;
    const auto [down, up] = halves(linear, weight.shape(-2), weight.shape(-1));
    const mx::array added = mx::multiply(mx::array(adapters_.scale()), mx::matmul(up, down, cpu), cpu);
    const mx::array sum = mx::add(weight, added, cpu);
    if (!adapters_.magnitudes()) return sum;
    const mx::array norms = mx::sqrt(mx::sum(mx::square(sum, cpu), 1, /*keepdims=*/true, cpu), cpu);
    const mx::array zeros = mx::equal(norms, mx::array(0.0F), cpu);
    const mx::array wanted = mx::expand_dims(magnitudes(linear, weight.shape(0)), 1, cpu);
    return mx::multiply(sum, mx::divide(wanted, mx::where(zeros, mx::array(1.0F), norms, cpu), cpu), cpu);
  }

  // The product's tensors by their endings: "weight", and where it is quantised "scales" and "biases".
  std::map<std::string, mx::array> fused(const std::string& linear) const {
    const mx::Device cpu = mx::Device::cpu;
    std::map<std::string, mx::array> made;
    if (!source_.has(linear + ".scales")) {
      const mx::array weight = read(linear + ".weight", weights::Element::number);
      const mx::array sum = adapted(linear, floats(weight));
      made.emplace("weight", mx::contiguous(mx::astype(sum, weight.dtype(), cpu), false, cpu));
    } else {
      const auto [bits, group] = config_.formats.of(linear);
      const mx::array codes = read(linear + ".weight", weights::Element::codes);
      const mx::array scales = read(linear + ".scales", weights::Element::number);
      const mx::array biases = read(linear + ".biases", weights::Element::number);
      const mx::array weight = mx::dequantize(codes, floats(scales), floats(biases), group, bits, "affine",
                                              std::nullopt, std::nullopt, cpu);
      const mx::array sum = adapted(linear, weight);
      const auto parts =
          mx::quantize(mx::astype(sum, scales.dtype(), cpu), group, bits, "affine", std::nullopt, cpu);
      made.emplace("weight", parts[0]);
      made.emplace("scales", parts[1]);
      made.emplace("biases", parts[2]);
    }
    for (auto& [ending, array] : made) array.eval();
    return made;
  }

  ModelConfig config_;
  weights::Checkpoint source_;
  AdapterFiles adapters_;
  std::set<std::string> adapted_;  // the model's matrices, without ".weight"
  const FuseWatcher& watcher_;
  FuseProgress progress_;
};

// Makes it where it is not there yet.
void take_folder(const fs::path& out) {
  std::error_code error;
  fs::create_directories(out, error);
  if (error) throw InputError(fmt::format("cannot make the folder {}: {}", out.string(), error.message()));
  const fs::directory_iterator first(out);
  if (first != fs::directory_iterator()) {
    throw InputError(fmt::format("{} holds something already ({}); name a new or an empty folder",
                                 out.string(), first->path().filename().string()));
  }
}

}  // namespace

FuseProgress fuse(const fs::path& model, const fs::path& adapter, const fs::path& out,
                  const FuseWatcher& watcher) {
  Fuser fuser(model, adapter, watcher);
  take_folder(out);
  check_space(out, fuser.total_bytes());
  try {
    const auto progress = fuser.write(out);
    copy_beside_weights(model, out, watcher.note);
    if (const auto index = model / "model.safetensors.index.json"; fs::exists(index))
      write_file(out / index.filename(), read_file(index));
    write_file(out / "config.json", read_file(model / "config.json"));
    return progress;
  } catch (...) {
    watcher.note(fmt::format("what is in {} is no model: remove it", out.string()));
    throw;
  }
}

}  // namespace tandem::models
