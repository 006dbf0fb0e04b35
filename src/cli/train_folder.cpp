#include "cli/train_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/limits.h"
#include "cli/terminal.h"
#include "models/model_files.h"

namespace tandem::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const char* const lock_name = ".lock";

// Of all weights, from config.json, which may say null.
std::string dtype_of(const TrainFlags& flags, const json& config) {
  if (!trains_all(flags)) return "F32";
  std::string name = flags.save_dtype;
  for (const char* key : {"dtype", "torch_dtype"}) {
    const auto found = config.find(key);
    if (name.empty() && found != config.end() && found->is_string()) name = *found;
  }
  return name == "float32" ? "F32" : name == "float16" ? "F16" : "BF16";
}

// Of config.json and of some bytes all over the weights: a moved model has the same, another one of its
// shapes has not.
std::string digest_of_model(const fs::path& model) {
  constexpr auto samples = limits::weight_samples, sample_bytes = limits::weight_sample_bytes;
  std::uint64_t digest = fnv1a(read_file(model / "config.json"));
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(model))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::string sample(sample_bytes, 0);
  for (const auto& path : files) {
    std::ifstream file(path, std::ios::binary);
    const auto size = fs::file_size(path), past = size - std::min(size, sample_bytes);
    for (std::uintmax_t i = 0; i <= samples; ++i) {
      file.seekg(static_cast<std::streamoff>(past / samples * i + past % samples * i / samples));
      file.read(sample.data(), static_cast<std::streamsize>(std::min(size, sample_bytes)));
      digest = fnv1a(std::string_view(sample).substr(0, static_cast<std::size_t>(file.gcount())), digest);
    }
  }
  return fmt::format("{:016x}", digest);
}

// What a run that goes on must have in common with what it goes on from.
json fingerprint(const TrainFlags& flags, const fs::path& model) {
  json all{{"model", digest_of_model(model)},
           {"data", flags.data_digest},
           {"method", flags.training.method},
           {"batch-size", flags.batch_size},
           {"grad-accumulation-steps", flags.accumulation},
           {"max-seq-length", flags.longest},
           {"mask-prompt", flags.mask_prompt},
           {"seed", flags.training.seed},
           {"optimizer", flags.training.optimizer},
           {"dtype", flags.training.dtype},
           {"lora-rank", flags.training.lora_rank},
           {"num-layers", flags.training.lora_layers}};
  if (!trains_all(flags)) {
    all["lora-scale"] = flags.training.lora_scale;
    all["lora-keys"] = flags.training.lora_keys;
  }
  if (flags.training.from_scratch) all["init"] = true;
  if (flags.skip_bad) all["skip-bad-data"] = true;
  if (!flags.first_adapter.empty()) all["resume-adapter-file"] = flags.first_adapter;
  if (flags.training.balance_rate > 0) all["balance-rate"] = flags.training.balance_rate;
  if (flags.training.balance_loss > 0) all["balance-loss"] = flags.training.balance_loss;
  return all;
}

void check_resumed(const TrainFlags& flags, const fs::path& model) {
  const json before = read_json_file(fs::path(flags.out) / "run.json"), now = fingerprint(flags, model);
  json all = now;
  all.update(before);
  for (const auto& [name, value] : all.items()) {
    const json then = before.value(name, json()), given = now.value(name, json());
    if (then == given) continue;
    if (name == "model" || name == "data") {
      throw InputError(
          fmt::format("--resume: {} began with {}: give what it began with, or another --out", flags.out,
                      name == "model" ? "another model" : "other texts, or another tokenizer's"));
    }
    const auto text = [](const json& one) { return one.is_null() ? "none" : one.dump(); };
    throw InputError(
        fmt::format("--resume: {} began with --{} {}, not {}: give what it began with, or another --out",
                    flags.out, name, text(then), text(given)));
  }
}

// The steps after which one was written.
std::vector<int> checkpoints(const TrainFlags& flags) {
  std::vector<int> steps;
  if (!fs::is_directory(flags.out)) return steps;
  for (const auto& entry : fs::directory_iterator(flags.out)) {
    int step = 0;
    const bool is_one = std::sscanf(entry.path().filename().c_str(), "checkpoint-%d.safetensors", &step) == 1;
    if (is_one && entry.path().filename() == checkpoint_file(flags, step).filename()) steps.push_back(step);
  }
  return steps;
}

// Nothing that an earlier run left may be taken for this one's, and no model's files for another's.
void check_empty(const TrainFlags& flags) {
  for (const auto& entry : fs::directory_iterator(flags.out)) {
    const std::string name = entry.path().filename();
    if (name == lock_name) continue;
    if (flags.resume)
      throw InputError(
          fmt::format("--resume: {} has no run.json: no run left it; give another --out", flags.out));
    const bool of_model = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    if (trains_all(flags) && of_model && name != weights_file(flags).filename() && checkpoints(flags).empty())
      throw InputError(
          fmt::format("--out {}: it holds {}, of another model; give another folder", flags.out, name));
  }
  for (const auto& there : {weights_file(flags), checkpoint_file(flags, last_checkpoint(flags))}) {
    if (fs::exists(there)) {
      throw InputError(
          fmt::format("--out {}: it holds {} already; give another folder, remove it, or --resume", flags.out,
                      there.filename().string()));
    }
  }
}

json adapter_config(const TrainFlags& flags) {
  const auto& t = flags.training;
  json parameters{{"rank", t.lora_rank}, {"scale", t.lora_scale}, {"dropout", 0.0}};
  if (!t.lora_keys.empty()) parameters["keys"] = t.lora_keys;
  return {{"fine_tune_type", t.method},
          {"num_layers", t.lora_layers < 1 ? -1 : t.lora_layers},
          {"lora_parameters", std::move(parameters)},
          {"model", flags.model}};
}

}  // namespace

std::string result_dtype(const TrainFlags& flags, const fs::path& model) {
  return dtype_of(flags, read_json_file(model / "config.json"));
}

json unquantised_config(const fs::path& model) {
  json config = read_json_file(model / "config.json");
  for (const char* packed : {"quantization", "quantization_config"}) config.erase(packed);
  return config;
}

fs::path weights_file(const TrainFlags& flags) {
  return fs::absolute(flags.out) / (trains_all(flags) ? "model.safetensors" : "adapters.safetensors");
}

fs::path checkpoint_file(const TrainFlags& flags, int step) {
  return fs::absolute(flags.out) / fmt::format("checkpoint-{:06}.safetensors", step);
}

int last_checkpoint(const TrainFlags& flags) {
  const auto steps = checkpoints(flags);
  return steps.empty() ? 0 : *std::max_element(steps.begin(), steps.end());
}

bool has_checkpoint_before(const TrainFlags& flags, int step) {
  const auto steps = checkpoints(flags);
  return std::any_of(steps.begin(), steps.end(), [step](int before) { return before < step; });
}

void remove_checkpoints_before(const TrainFlags& flags, int step) {
  for (const int before : checkpoints(flags))
    if (before < step) fs::remove(checkpoint_file(flags, before));
}

weights::FileLock lock_folder(const TrainFlags& flags, const fs::path& model) {
  if (flags.out.empty()) throw InputError("--out: give a folder");
  std::error_code error;
  if (fs::equivalent(flags.out, model, error))
    throw InputError(fmt::format("--out {}: that is the model's own folder; give another one", flags.out));
  fs::create_directories(flags.out, error);
  if (error) throw InputError(fmt::format("--out {}: {}", flags.out, error.message()));
  auto lock = weights::FileLock::try_lock(fs::path(flags.out) / lock_name);
  if (!lock) throw InputError(fmt::format("--out {}: another run is writing there", flags.out));
  return std::move(*lock);
}

void write_beside(const TrainFlags& flags, const fs::path& model) {
  const fs::path out = flags.out;
  // One that ended before its first checkpoint begins again.
  const bool resumed = flags.resume && fs::exists(out / "run.json");
  resumed ? check_resumed(flags, model) : check_empty(flags);
  write_file(out / "train.yaml", flags.as_config);
  if (resumed && last_checkpoint(flags) > 0) return;
  if (flags.resume) note("{} has no checkpoint: it begins at step 1\n", flags.out);
  fs::remove(out / "metrics.jsonl");
  if (!trains_all(flags)) {
    write_file(out / "adapter_config.json", adapter_config(flags).dump(2) + '\n');
  } else {
    models::copy_beside_weights(model, out, [](const std::string& line) { note("{}\n", line); });
    json config = unquantised_config(model);
    const std::string dtype = dtype_of(flags, config);
    // The name of now, which is read first, and that of before transformers 4.56.
    for (const char* key : {"dtype", "torch_dtype"})
      config[key] = dtype == "F32" ? "float32" : dtype == "F16" ? "float16" : "bfloat16";
    write_file(out / "config.json", config.dump(2) + '\n');
  }
  write_file(out / "run.json", fingerprint(flags, model).dump(2) + '\n');
}

}  // namespace tandem::cli
