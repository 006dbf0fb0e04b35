#include "models/model_files.h"

#include <fmt/format.h>

#include <set>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"

namespace tandem::models {
namespace {

namespace fs = std::filesystem;

// Weights in any format, what belongs to them, and how they were trained: written anew, or nothing that a
// model's folder needs.
bool is_of_weights(const fs::path& file) {
  static const std::set<std::string> endings{".safetensors", ".bin", ".pt",   ".pth",     ".gguf",
                                             ".onnx",        ".h5",  ".ckpt", ".msgpack", ".incomplete"};
  const std::string name = file.filename().string();
  static const std::set<std::string> names{"config.json", "run.json", "train.yaml", "metrics.jsonl",
                                           "report.html"};
  return endings.contains(file.extension().string()) || names.contains(name) ||
         name.ends_with(".index.json") || name.starts_with("events.out.tfevents.") || name.starts_with('.');
}

}  // namespace

void copy_beside_weights(const fs::path& model, const fs::path& to,
                         const std::function<void(const std::string& line)>& note) {
  for (const auto& entry : fs::directory_iterator(model)) {
    if (!entry.is_regular_file() || is_of_weights(entry.path())) continue;
    const auto name = entry.path().filename();
    if (entry.file_size() > limits::small_file_bytes) {
      note(fmt::format("{} is not copied: it is larger than {} bytes", name.string(),
                       limits::small_file_bytes));
      continue;
    }
    write_file(to / name, read_file(entry.path()));
  }
}

void check_space(const fs::path& out, std::uint64_t needed) {
  std::error_code error;
  const auto space = fs::space(out, error);
  if (error || needed <= space.available) return;
  throw InputError(
      fmt::format("not enough room in {}: {} bytes are needed, {} are free; free some, or name a "
                  "folder on another disk",
                  out.string(), needed, space.available));
}

}  // namespace tandem::models
