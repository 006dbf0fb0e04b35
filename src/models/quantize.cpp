#include "models/quantize.h"

#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/stream.h>
#include <mlx/transforms.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <thread>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "models/families.h"
#include "models/model_files.h"
#include "models/quantize_folder.h"
#include "weights/checksum.h"

namespace tandem::models {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;
using weights::SafetensorsWriter;

std::string_view bytes_of(const mx::array& array) { return {array.data<char>(), array.nbytes()}; }

// Quantises a matrix's rows on all cores, a block of them for each at a time.
class BlockQuantizer {
 public:
  BlockQuantizer() {
    const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1u, limits::quantize_threads);
    for (unsigned i = 0; i < threads; ++i) streams_.push_back(mx::new_stream(mx::Device::cpu));
  }

  // matrix [rows, inputs] → `take(first_row, {codes, scales, biases})` for one block after the other.
  template <typename Take>
  void run(const mx::array& matrix, const weights::Quantisation& quantisation, Take take) const {
    const auto row_bytes = static_cast<std::size_t>(matrix.shape(1)) * matrix.itemsize();
    const int rows = matrix.shape(0);
    const int block = std::max(1, static_cast<int>(limits::quantize_block_bytes / row_bytes));
    for (int first = 0; first < rows;) {
      std::vector<int> firsts;
      std::vector<mx::array> made;
      for (std::size_t i = 0; i < streams_.size() && first < rows; ++i) {
        const int end = std::min(rows, first + block);
        const mx::array part = mx::slice(matrix, {first, 0}, {end, matrix.shape(1)}, streams_[i]);
        for (auto& array :
             mx::quantize(part, quantisation.group, quantisation.bits, "affine", std::nullopt, streams_[i])) {
          made.push_back(std::move(array));
        }
        firsts.push_back(first);
        first = end;
      }
      mx::eval(made);
      for (std::size_t i = 0; i < firsts.size(); ++i) {
        const auto at = made.begin() + static_cast<std::ptrdiff_t>(3 * i);
        take(firsts[i], std::vector<mx::array>(at, at + 3));
      }
    }
  }

 private:
  std::vector<mx::Stream> streams_;
};

std::string shard_name(std::size_t shard, std::size_t shards) {
  return shards == 1 ? "model.safetensors"
                     : fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards);
}

std::vector<weights::TensorSpec> specs_of(const std::vector<LaidOut>& shard) {
  std::vector<weights::TensorSpec> specs;
  for (const auto& tensor : shard) {
    for (auto& spec : tensor.tensors()) specs.push_back(std::move(spec));
  }
  return specs;
}

std::uint64_t bytes_of(const std::vector<LaidOut>& shard) {
  std::uint64_t sum = 0;
  for (const auto& tensor : shard) sum += tensor.bytes();
  return sum;
}

// A checksum of all that decides about the result: the model's files, as far as size and time of their last
// change tell, and what goes to which shard in which format.
std::string plan_of(const fs::path& model, const weights::Checkpoint& source,
                    const std::vector<std::vector<LaidOut>>& shards) {
  auto plan = nlohmann::json::array();
  auto files = source.files();
  files.push_back(model / "config.json");
  for (const auto& file : files) {
    struct stat status {};
    if (::stat(file.c_str(), &status) != 0) throw InputError(fmt::format("cannot read {}", file.string()));
    plan.push_back({file.filename().string(), status.st_size, status.st_mtime});
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const auto& tensor : specs_of(shards[i]))
      plan.push_back({i, tensor.name, tensor.dtype, tensor.shape});
  }
  weights::Hasher hasher(weights::ChecksumKind::sha256, 0);
  hasher.update(plan.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  return hasher.finish();
}

class Quantizer {
 public:
  Quantizer(const ModelConfig& config, const weights::ShardedWeights& weights, QuantizeProgress& progress,
            const QuantizeWatcher& watcher)
      : config_(config), weights_(weights), progress_(progress), watcher_(watcher) {}

  void write(const LaidOut& tensor, SafetensorsWriter& writer) {
    for (std::size_t i = 0; i < tensor.sources.size(); ++i) {
      const mx::array piece = take_piece(config_, weights_, tensor, tensor.sources[i]);
      if (!tensor.quantisation) {
        put(writer, tensor.name, i * piece.nbytes(), piece);
        continue;
      }
      const auto specs = tensor.tensors();
      const int inputs = static_cast<int>(tensor.shape.back());
      const mx::array matrix = mx::reshape(piece, {-1, inputs}, mx::Device::cpu);
      const auto rows = static_cast<std::uint64_t>(matrix.shape(0));
      blocks_.run(matrix, *tensor.quantisation, [&](int first, const std::vector<mx::array>& parts) {
        for (std::size_t part = 0; part < parts.size(); ++part) {
          const std::uint64_t row_bytes =
              parts[part].nbytes() / static_cast<std::uint64_t>(parts[part].shape(0));
          const auto row = i * rows + static_cast<std::uint64_t>(first);
          put(writer, specs[part].name, row * row_bytes, parts[part]);
        }
      });
    }
  }

 private:
  void put(SafetensorsWriter& writer, const std::string& name, std::uint64_t offset, const mx::array& array) {
    if (watcher_.stopped()) throw QuantizeStopped();
    writer.write(name, offset, bytes_of(array));
    progress_.there_bytes += array.nbytes();
    progress_.written_bytes += array.nbytes();
    watcher_.progress(progress_);
  }

  const ModelConfig& config_;
  const weights::ShardedWeights& weights_;
  QuantizeProgress& progress_;
  const QuantizeWatcher& watcher_;
  const BlockQuantizer blocks_;
};

QuantizeReport report_of(const ModelConfig& config, const weights::Checkpoint& source,
                         const std::vector<std::vector<LaidOut>>& shards) {
  static const std::regex layer_number("\\.layers\\.[0-9]+\\.");
  QuantizeReport report;
  report.progress.shards = shards.size();
  std::set<std::string> used, indivisible;
  for (const auto& shard : shards) {
    report.progress.total_bytes += bytes_of(shard);
    for (const auto& tensor : shard) {
      used.insert(tensor.sources.begin(), tensor.sources.end());
      report.weights += tensor.piece_bytes() * tensor.sources.size() / *weights::dtype_bytes(tensor.dtype);
      report.largest_piece_bytes = std::max(report.largest_piece_bytes, tensor.piece_bytes());
      if (tensor.indivisible)
        indivisible.insert(std::regex_replace(tensor.stem(), layer_number, ".layers.*."));
    }
  }
  report.indivisible.assign(indivisible.begin(), indivisible.end());
  for (const auto& [name, info] : source.tensors()) {
    const bool scale = config.formats.fp8_block > 0 && name.ends_with("_scale_inv");
    if (!used.contains(name) && !(scale && used.contains(name.substr(0, name.size() - 10))))
      report.unused.push_back(name);
  }
  return report;
}

void write_index(const QuantizeFolder& folder, const std::vector<std::vector<LaidOut>>& shards,
                 const QuantizeReport& report) {
  nlohmann::json index{
      {"metadata", {{"total_size", report.progress.total_bytes}, {"total_parameters", report.weights}}},
      {"weight_map", nlohmann::json::object()}};
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const auto& tensor : specs_of(shards[i]))
      index["weight_map"][tensor.name] = shard_name(i, shards.size());
  }
  write_file(folder.file("model.safetensors.index.json"), index.dump(4) + '\n');
}

}  // namespace

QuantizeReport quantize(const fs::path& model, const fs::path& out, const QuantizeOptions& options,
                        const QuantizeWatcher& watcher) {
  const ModelConfig config = load_config(model);
  weights::Checkpoint source(model);
  const auto layout = quantized_layout(config, source, options);
  const auto shards = cut_into_shards(layout, options.max_shard_bytes);
  const auto shard = parallel::shard_of(config.sizes, {1.0}, 0);
  const weights::ShardedWeights weights(source, shard_rules(config, source, {0, config.layers}),
                                        config.formats, shard, 0, config.layers);
  QuantizeReport report = report_of(config, source, shards);
  QuantizeProgress& progress = report.progress;
  QuantizeFolder folder(out, plan_of(model, source, shards),
                        fmt::format("{}, {} bit, groups of {}", model.string(), options.quantisation.bits,
                                    options.quantisation.group));

  std::vector<bool> is_there(shards.size());
  for (std::size_t i = 0; i < shards.size(); ++i) {
    if (watcher.stopped()) throw QuantizeStopped();
    is_there[i] =
        folder.has_shard(shard_name(i, shards.size()), SafetensorsWriter::file_bytes(specs_of(shards[i])));
    if (!is_there[i]) continue;
    progress.there_bytes += bytes_of(shards[i]);
    ++progress.there_shards;
  }
  if (progress.there_shards > 0)
    watcher.note(fmt::format("{} of {} shards are there already", progress.there_shards, shards.size()));
  check_space(out, progress.total_bytes - progress.there_bytes);
  copy_beside_weights(model, out, watcher.note);

  Quantizer quantizer(config, weights, progress, watcher);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    if (is_there[i]) continue;
    const std::string name = shard_name(i, shards.size());
    SafetensorsWriter writer(folder.file(name), specs_of(shards[i]));
    for (const auto& tensor : shards[i]) quantizer.write(tensor, writer);
    folder.record(name, writer.incomplete());
    writer.finish();
    ++progress.there_shards;
    watcher.progress(progress);
  }
  write_index(folder, shards, report);
  const auto made_config =
      quantized_config(read_json_file(model / "config.json"), layout, options.quantisation);
  write_file(folder.file("config.json"), made_config.dump(4) + '\n');
  folder.finish();
  return report;
}

}  // namespace tandem::models
