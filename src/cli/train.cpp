#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "cli/interrupt.h"
#include "cli/progress_bar.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "cluster/train_worker.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "train/data.h"
#include "train/schedule.h"

namespace tandem::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct TrainFlags {
  std::string model, data, out = "adapters";
  int iters = 1000, batch_size = 4, accumulation = 1, longest = 2048;
  train::Schedule schedule{.peak = 1e-5};
  int report_every = 10, evaluate_every = 200, evaluate_batches = 25, save_every = 100, restarts = 10;
  bool mask_prompt = false, json = false, resume = false;
  std::string parallel = "tp", save_dtype;
  cluster::Training training;
  ClusterFlags cluster;
};

bool trains_all(const TrainFlags& flags) { return flags.training.method == "full"; }

// "BF16" of config.json's "bfloat16".
std::string dtype_of(const TrainFlags& flags, const json& config) {
  if (!trains_all(flags)) return "F32";
  const std::string name =
      flags.save_dtype.empty() ? config.value("torch_dtype", "bfloat16") : flags.save_dtype;
  return name == "float32" ? "F32" : name == "float16" ? "F16" : "BF16";
}

parallel::Plan plan_of(const TrainFlags& flags, const models::ModelConfig& config) {
  const auto plan = make_plan(flags.cluster, config);
  if (plan.stages.size() > 1)
    throw InputError("training has no pipeline stages yet: take --parallel tp or dp");
  if (plan.rank(0).host != "local") {
    throw InputError("training writes its results from rank 0: let the first host be \"local\"");
  }
  const int ranks = plan.world_size();
  if (flags.parallel == "tp" && config.sizes.latent == 0 && config.sizes.kv_heads % ranks != 0) {
    throw InputError(
        fmt::format("{} key/value heads cannot be split over {} ranks without a copy, which training "
                    "does not do yet: take --parallel dp, or other --ranks",
                    config.sizes.kv_heads, ranks));
  }
  return plan;
}

fs::path weights_file(const TrainFlags& flags) {
  return fs::absolute(flags.out) / (trains_all(flags) ? "model.safetensors" : "adapters.safetensors");
}

// OUT/checkpoint-000100.safetensors, after step 100.
fs::path checkpoint_file(const TrainFlags& flags, int step) {
  return fs::absolute(flags.out) / fmt::format("checkpoint-{:06}.safetensors", step);
}

// The step of the last checkpoint; 0: there is none.
int last_checkpoint(const TrainFlags& flags) {
  int last = 0;
  if (!fs::is_directory(flags.out)) return last;
  for (const auto& entry : fs::directory_iterator(flags.out)) {
    int step = 0;
    const bool is_one = std::sscanf(entry.path().filename().c_str(), "checkpoint-%d.safetensors", &step) == 1;
    if (is_one && entry.path().filename() == checkpoint_file(flags, step).filename())
      last = std::max(last, step);
  }
  return last;
}

// What a run that goes on must have in common with what it goes on from.
json fingerprint(const TrainFlags& flags) {
  return {{"method", flags.training.method},
          {"batch-size", flags.batch_size},
          {"grad-accumulation-steps", flags.accumulation},
          {"max-seq-length", flags.longest},
          {"mask-prompt", flags.mask_prompt},
          {"seed", flags.training.seed},
          {"optimizer", flags.training.optimizer},
          {"lora-rank", flags.training.lora_rank},
          {"num-layers", flags.training.lora_layers}};
}

void check_resumed(const TrainFlags& flags) {
  const json before = read_json_file(fs::path(flags.out) / "run.json"), now = fingerprint(flags);
  for (const auto& [name, value] : now.items()) {
    if (before.value(name, json()) != value) {
      throw InputError(fmt::format("--resume: {} began with --{} {}, not {}", flags.out, name,
                                   before.value(name, json()).dump(), value.dump()));
    }
  }
}

// What belongs into the folder besides the weights, before the first of them.
void write_beside(const TrainFlags& flags, const fs::path& model) {
  const fs::path out = flags.out;
  if (flags.resume && last_checkpoint(flags) > 0) return check_resumed(flags);
  for (const auto& there : {weights_file(flags), checkpoint_file(flags, last_checkpoint(flags))}) {
    if (fs::exists(there)) {
      throw InputError(
          fmt::format("--out {}: it holds {} already; give another folder, remove it, or --resume", flags.out,
                      there.filename().string()));
    }
  }
  std::error_code error;
  fs::create_directories(out, error);
  if (error) throw InputError(fmt::format("--out {}: {}", flags.out, error.message()));
  write_file(out / "run.json", fingerprint(flags).dump(2) + '\n');
  const auto& t = flags.training;
  if (!trains_all(flags)) {
    json parameters{{"rank", t.lora_rank}, {"scale", t.lora_scale}, {"dropout", 0.0}};
    if (!t.lora_keys.empty()) parameters["keys"] = t.lora_keys;
    const json config{{"fine_tune_type", "lora"},
                      {"num_layers", t.lora_layers < 1 ? -1 : t.lora_layers},
                      {"lora_parameters", std::move(parameters)},
                      {"model", flags.model}};
    return write_file(out / "adapter_config.json", config.dump(2) + '\n');
  }
  for (const auto& entry : fs::directory_iterator(model)) {
    const std::string name = entry.path().filename().string();
    const bool text = name.ends_with(".json") || name.ends_with(".jinja") || name == "tokenizer.model";
    if (text && name != "config.json" && !name.ends_with(".index.json"))
      write_file(out / name, read_file(entry.path()));
  }
  json config = read_json_file(model / "config.json");
  for (const char* packed : {"quantization", "quantization_config"}) config.erase(packed);
  const std::string dtype = dtype_of(flags, config);
  config["torch_dtype"] = dtype == "F32" ? "float32" : dtype == "F16" ? "float16" : "bfloat16";
  write_file(out / "config.json", config.dump(2) + '\n');
}

// One run, from the first batch to the last file.
class Run {
 public:
  Run(const TrainFlags& flags, const fs::path& model)
      : flags_(flags),
        metrics_(fs::path(flags.out) / "metrics.jsonl", std::ios::app),
        dtype_(dtype_of(flags, read_json_file(model / "config.json"))) {}

  // From the last checkpoint on. Whether it came to its end: Ctrl-C stops it after a step.
  bool train(cluster::Conductor& conductor, train::Batches batches,
             const std::vector<train::Sequence>& valid) {
    conductor_ = &conductor;
    const int done = last_checkpoint(flags_);
    if (done > 0) {
      conductor.carry_out({{"restore", {{"file", checkpoint_file(flags_, done).string()}}}});
      batches.skip(done * flags_.accumulation);
      fmt::print(stderr, "going on after step {}\n", done);
    }
    nll_ = seconds_ = link_s_ = 0;
    tokens_ = 0;
    first_ = done + 1;
    start_ = Clock::now();
    for (int i = first_; i <= flags_.iters; ++i) {
      if (!valid.empty() && (i == 1 || i % flags_.evaluate_every == 0 || i == flags_.iters))
        evaluate(i, valid);
      step(i, batches);
      if (i % flags_.report_every == 0 || i == flags_.iters) report(i);
      const bool stopped = InterruptGuard::interrupted();
      if (stopped || i % flags_.save_every == 0 || i == flags_.iters) save(i);
      if (stopped) return i == flags_.iters;
    }
    return true;
  }

  json summary() const {
    return {{"out", flags_.out},         {"iterations", flags_.iters}, {"tokens", all_tokens_},
            {"train_loss", last_loss_},  {"valid_loss", last_valid_},  {"tokens_per_s", last_speed_},
            {"peak_bytes", peak_bytes_}, {"skipped_steps", skipped_}};
  }

 private:
  using Clock = std::chrono::steady_clock;

  void step(int number, train::Batches& batches) {
    json micro = json::array();
    for (int i = 0; i < flags_.accumulation; ++i) micro.push_back(cluster::sequences_to_json(batches.next()));
    rate_ = train::learning_rate(flags_.schedule, number, flags_.iters);
    const json done =
        conductor_->carry_out({{"step", {{"batches", std::move(micro)}, {"learning_rate", rate_}}}});
    peak_bytes_ = done["peak_bytes"];
    if (done["skipped"]) {
      ++skipped_;
      fmt::print(stderr, "step {}: the gradient is not finite; the step is left out on every rank\n", number);
      return;
    }
    nll_ += done["sum_nll"].get<double>();
    norm_ = done["gradient_norm"];
    tokens_ += done["tokens"].get<std::int64_t>();
    seconds_ += done["seconds"].get<double>();
    link_s_ += done["link_s"].get<double>();
  }

  void report(int number) {
    if (tokens_ == 0) return;
    last_loss_ = nll_ / static_cast<double>(tokens_);
    last_speed_ = static_cast<double>(tokens_) / seconds_;
    all_tokens_ += tokens_;
    const std::chrono::duration<double> past = Clock::now() - start_;
    const double left = past.count() / (number - first_ + 1) * (flags_.iters - number);
    fmt::print(
        stderr, "{}\n",
        fmt::format(
            "step {:>{}} of {}  loss {:.4f}  rate {:.2e}  norm {:.3f}  {:.0f} tokens/s  link {:.0f} %  "
            "memory {}  {} left",
            number, std::to_string(flags_.iters).size(), flags_.iters, last_loss_, rate_, norm_, last_speed_,
            100 * link_s_ / seconds_, format_bytes(peak_bytes_), format_time_left(left, 1)));
    note({{"step", number},
          {"train_loss", last_loss_},
          {"learning_rate", rate_},
          {"gradient_norm", norm_},
          {"tokens_per_s", last_speed_},
          {"link_share", link_s_ / seconds_},
          {"peak_bytes", peak_bytes_}});
    nll_ = seconds_ = link_s_ = 0;
    tokens_ = 0;
  }

  void evaluate(int number, const std::vector<train::Sequence>& valid) {
    const auto each = static_cast<std::size_t>(flags_.batch_size);
    const std::size_t count =
        flags_.evaluate_batches < 0
            ? valid.size()
            : std::min(valid.size(), each * static_cast<std::size_t>(flags_.evaluate_batches));
    double nll = 0;
    std::int64_t tokens = 0;
    for (std::size_t first = 0; first < count; first += each) {
      const auto at = [&](std::size_t i) { return valid.begin() + static_cast<std::ptrdiff_t>(i); };
      const json done = conductor_->carry_out(
          {{"evaluate",
            {{"sequences", cluster::sequences_to_json({at(first), at(std::min(count, first + each))})}}}});
      nll += done["sum_nll"].get<double>();
      tokens += done["tokens"].get<std::int64_t>();
    }
    if (tokens == 0) return;
    last_valid_ = nll / static_cast<double>(tokens);
    fmt::print(stderr, "step {:>{}} of {}  validation loss {:.4f}\n", number - 1,
               std::to_string(flags_.iters).size(), flags_.iters, last_valid_);
    note({{"step", number - 1}, {"valid_loss", last_valid_}});
  }

  // The result so far, and the checkpoint to go on from, in place of the one before.
  void save(int number) {
    const int before = last_checkpoint(flags_);
    conductor_->carry_out({{"save", {{"file", weights_file(flags_).string()}, {"dtype", dtype_}}}});
    conductor_->carry_out({{"keep", {{"file", checkpoint_file(flags_, number).string()}}}});
    if (before > 0 && before != number) fs::remove(checkpoint_file(flags_, before));
  }

  void note(const json& line) { metrics_ << line.dump() << std::endl; }

  const TrainFlags& flags_;
  cluster::Conductor* conductor_ = nullptr;
  std::ofstream metrics_;
  std::string dtype_;
  Clock::time_point start_;
  int first_ = 1;
  // Since the last report.
  double nll_ = 0, seconds_ = 0, link_s_ = 0;
  std::int64_t tokens_ = 0;
  // The last ones.
  double rate_ = 0, norm_ = 0, last_loss_ = 0, last_valid_ = 0, last_speed_ = 0;
  std::int64_t all_tokens_ = 0;
  std::uint64_t peak_bytes_ = 0;
  int skipped_ = 0;
};

int run(const TrainFlags& flags) {
  if (!flags.cluster.adapter.empty()) throw InputError("--adapter: training starts from the model alone");
  const auto folder = find_model(flags.model);
  const auto config = models::load_config(folder);
  const auto plan = plan_of(flags, config);
  std::optional<text::Tokenizer> tokenizer;
  if (fs::exists(folder / "tokenizer.json")) tokenizer.emplace(folder);
  const auto chat = text::ChatTemplate::load(folder);
  train::TextReader reader(tokenizer, chat, config.sizes.vocabulary,
                           {.end_ids = config.end_ids,
                            .mask_prompt = flags.mask_prompt,
                            .longest = std::min(flags.longest, config.context)});
  const fs::path data = flags.data;
  auto texts = reader.read(data / "train.jsonl");
  const auto count = texts.size();
  std::vector<train::Sequence> valid;
  if (fs::exists(data / "valid.jsonl")) valid = reader.read(data / "valid.jsonl");
  if (reader.cut() > 0)
    fmt::print(stderr, "{} texts are longer than {} tokens and were cut\n", reader.cut(), flags.longest);
  train::Batches batches(std::move(texts), flags.batch_size, flags.training.seed);
  write_beside(flags, folder);
  auto training = flags.training;
  training.replicas = flags.parallel == "dp" ? plan.world_size() : 1;
  fmt::print(stderr, "{} texts in {} batches an epoch, {} for validation; {} steps on {}\n", count,
             batches.in_an_epoch(), valid.size(), flags.iters, describe_size(plan));
  const InterruptGuard guard;
  Run run(flags, folder);
  bool complete = false;
  for (int lost = 0;; ++lost) {
    try {
      const auto conductor = start(folder, plan, flags.cluster, {}, training);
      complete = run.train(*conductor, batches, valid);
      break;
    } catch (const ClusterError& error) {
      if (lost == flags.restarts || InterruptGuard::interrupted()) throw;
      fmt::print(stderr, "{}; starting the group again\n", error.what());
    }
  }
  print_result(flags.json ? run.summary().dump() + '\n' : flags.out + '\n');
  return complete ? 0 : exit_interrupted;
}

void add_lora_flags(CLI::App& verb, cluster::Training& training) {
  verb.add_option("--lora-rank", training.lora_rank)->check(CLI::Range(1, 1024))->capture_default_str();
  verb.add_option("--lora-scale", training.lora_scale, "Multiplies what adapters add")->capture_default_str();
  verb.add_option("--num-layers", training.lora_layers, "The last so many layers are adapted; -1: all")
      ->capture_default_str();
  verb.add_option("--lora-keys", training.lora_keys,
                  "Which products: self_attn.q_proj,self_attn.v_proj [all linear]")
      ->delimiter(',');
}

void add_step_flags(CLI::App& verb, TrainFlags& flags) {
  const auto positive = CLI::Range(1, 1 << 30);
  auto& training = flags.training;
  verb.add_option("--iters", flags.iters, "Steps")->check(positive)->capture_default_str();
  verb.add_option("--batch-size", flags.batch_size, "Texts of a micro-batch")
      ->check(positive)
      ->capture_default_str();
  verb.add_option("--grad-accumulation-steps", flags.accumulation, "Micro-batches of a step")
      ->check(positive)
      ->capture_default_str();
  verb.add_option("--max-seq-length", flags.longest, "Tokens after which a text is cut")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  verb.add_flag("--mask-prompt", flags.mask_prompt, "Only the last answer of each text counts");
  verb.add_flag("--grad-checkpoint", training.recompute,
                "Keep each layer's input alone and compute the rest anew");
  verb.add_option("--optimizer", training.optimizer)
      ->check(CLI::IsMember({"adamw", "sgd", "lion"}))
      ->capture_default_str();
  verb.add_option("--learning-rate", flags.schedule.peak)
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb.add_option("--lr-schedule", flags.schedule.name, "How the rate falls after the warm-up")
      ->check(CLI::IsMember({"constant", "linear", "cosine", "wsd"}))
      ->capture_default_str();
  verb.add_option("--warmup", flags.schedule.warm_up, "Steps in which the rate rises")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb.add_option("--beta1", training.beta1, "Momentum; 0 for plain SGD")->capture_default_str();
  verb.add_option("--beta2", training.beta2)->capture_default_str();
  verb.add_option("--weight-decay", training.weight_decay)->capture_default_str();
  verb.add_option("--clip", training.clip, "The gradient's largest norm; 0: any")->capture_default_str();
  verb.add_option("--seed", training.seed, "Of the order of texts and of adapters' first values")
      ->capture_default_str();
}

void add_report_flags(CLI::App& verb, TrainFlags& flags) {
  const auto positive = CLI::Range(1, 1 << 30);
  verb.add_option("--steps-per-report", flags.report_every)->check(positive)->capture_default_str();
  verb.add_option("--steps-per-eval", flags.evaluate_every)->check(positive)->capture_default_str();
  verb.add_option("--val-batches", flags.evaluate_batches, "Micro-batches of an evaluation; -1: all")
      ->capture_default_str();
  verb.add_option("--save-every", flags.save_every, "Steps between checkpoints")
      ->check(positive)
      ->capture_default_str();
  verb.add_flag("--resume", flags.resume, "Go on from the checkpoint in OUT, on this or another plan");
  verb.add_option("--restarts", flags.restarts,
                  "How often a group that lost a worker or a link starts again from its checkpoint")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb.add_option("--save-dtype", flags.save_dtype, "Of --method full [the model's]")
      ->check(CLI::IsMember({"bfloat16", "float16", "float32"}));
  verb.add_flag("--json", flags.json, "At the end one JSON object in place of the folder's name");
}

}  // namespace

void add_train(CLI::App& program, int& exit_code) {
  auto* verb =
      program.add_subcommand("train", "Fine-tune a model on the cluster: LoRA, QLoRA or all weights");
  auto flags = std::make_shared<TrainFlags>();
  verb->add_option("MODEL", flags->model, "A folder, or a name in the local Hugging Face cache")->required();
  verb->add_option("--data", flags->data,
                   "A folder with train.jsonl and perhaps valid.jsonl, as mlx-lm has them")
      ->required();
  verb->add_option("--out,--adapter-path", flags->out, "The folder to write")->capture_default_str();
  verb->add_option("--method", flags->training.method, "lora (of quantised weights too: QLoRA) or full")
      ->check(CLI::IsMember({"lora", "full"}))
      ->capture_default_str();
  verb->add_option("--parallel", flags->parallel,
                   "tp: ranks share each matrix; dp: each holds the model and takes a part of every batch")
      ->check(CLI::IsMember({"tp", "dp"}))
      ->capture_default_str();
  add_lora_flags(*verb, flags->training);
  add_step_flags(*verb, *flags);
  add_report_flags(*verb, *flags);
  flags->cluster.activations = "float32";
  add_cluster_flags(*verb, flags->cluster);
  verb->callback([flags, &exit_code] { exit_code = run(*flags); });
}

}  // namespace tandem::cli
