#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/limits.h"
#include "cli/interrupt.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/train_flags.h"
#include "cli/train_folder.h"
#include "cli/train_run.h"
#include "cli/training_split.h"
#include "cli/verbs.h"
#include "cluster/train_worker.h"
#include "models/families.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "train/data.h"
#include "weights/checkpoint.h"

namespace tandem::cli {
namespace {

namespace fs = std::filesystem;

// For the report.
std::vector<TrainLog::Fact> facts_of(const TrainFlags& flags, const parallel::Plan& plan, std::size_t texts) {
  const auto& t = flags.training;
  const std::string adapter = fmt::format(", rank {}, scale {}", t.lora_rank, t.lora_scale);
  return {
      {"Model", flags.model},
      {"Data", fmt::format("{}: {}", flags.data, counted(texts, "text"))},
      {"Method", t.method + (trains_all(flags) ? (t.from_scratch ? ", from scratch" : "") : adapter)},
      {"Split", describe_size(plan) +
                    (plan.stages.size() > 1  ? ", pp"
                     : plan.world_size() > 1 ? ", " + flags.parallel
                                             : "") +
                    (t.replicas > 1 && t.shares.empty() ? fmt::format(", {} replicas", t.replicas) : "")},
      {"Steps", fmt::format("{}, each of {}", flags.iters,
                            counted(static_cast<std::size_t>(flags.batch_size) *
                                        static_cast<std::size_t>(flags.accumulation),
                                    "text"))},
      {"Optimizer", fmt::format("{}{}, {} at most, {}", t.optimizer, t.optimizer_bits == 8 ? " in 8 bit" : "",
                                flags.schedule.peak, flags.schedule.name)}};
}

// The method that the workers know, and what it trains where that is not theirs to choose.
void settle_method(TrainFlags& flags, const models::ModelConfig& config, const fs::path& folder) {
  auto& training = flags.training;
  if (training.method == "qlora") {
    const bool quantised =
        config.formats.all || (config.formats.fp8_block > 0 && flags.cluster.fp8 == "8bit");
    if (!quantised) {
      throw InputError(fmt::format(
          "--method qlora: the weights of {} are not quantised: make them so (tandem quantize {} OUT "
          "--bits 4) and train on OUT, or give --method lora",
          flags.model, flags.model));
    }
    training.method = "lora";
  }
  for (const auto& key : training.lora_keys) {
    if (training.method != "dora" || !key.starts_with("mlp.switch_mlp.")) continue;
    throw InputError(
        fmt::format("--lora-keys {}: experts have no DoRA: leave them out, or give --method lora", key));
  }
  // mlx-lm takes an adapter without keys to be of the experts too, of which it has no DoRA.
  if (training.method == "dora" && training.lora_keys.empty() && !config.expert_layers.empty())
    training.lora_keys = models::product_keys(config, weights::Checkpoint(folder));
}

// What was made of the texts but those that are trained on as they are.
void tell_of(const train::TextReader& reader, int longest) {
  if (reader.cut() > 0)
    note("{} cut after {} tokens: --max-seq-length, or the model's context\n", counted(reader.cut(), "text"),
         longest);
  if (reader.without_loss() > 0)
    note("{} left out that had nothing to learn\n", counted(reader.without_loss(), "text"));
  const auto& skipped = reader.skipped();
  if (skipped.empty()) return;
  note("{} skipped:\n", counted(skipped.size(), "line"));
  for (std::size_t i = 0; i < std::min(limits::skipped_lines_named, skipped.size()); ++i)
    note("  {}\n", skipped[i]);
  if (skipped.size() > limits::skipped_lines_named)
    note("  and {} more\n", skipped.size() - limits::skipped_lines_named);
}

// InputError where a flag does not go with the model or with another flag.
void check_flags(const TrainFlags& flags, const models::ModelConfig& config) {
  const auto& training = flags.training;
  check_path(flags.out);
  check_path(flags.first_adapter);
  if (training.optimizer_bits == 8 && training.optimizer != "adamw")
    throw InputError(fmt::format("--optimizer-bits 8: is for adamw and adam, not for {}: leave it out",
                                 training.optimizer));
  if (training.from_scratch && !trains_all(flags))
    throw InputError("--init: an adapter of weights that know nothing is of no use: give --method full");
  if (training.balance_rate > 0 && !trains_all(flags))
    throw InputError("--balance-rate: an adapter leaves routers as they are: give --method full, or no rate");
  if (training.balance_loss > 0 && !trains_all(flags))
    throw InputError("--balance-loss: an adapter leaves routers as they are: give --method full, or no loss");
  if (!flags.first_adapter.empty() && trains_all(flags))
    throw InputError("--resume-adapter-file: --method full trains no adapter: add it by tandem fuse first");
  if (training.balance_loss > 0 && config.expert_layers.empty())
    throw InputError(fmt::format("--balance-loss: {} has no experts: leave it out", flags.model));
  if (training.balance_rate > 0 && !config.router_bias)
    throw InputError(
        fmt::format("--balance-rate: the routers of {} have no e_score_correction_bias, as DeepSeek-V3's do: "
                    "leave it out",
                    flags.model));
  if (flags.parallel == "sdp" && flags.cluster.backend == "ring")
    throw InputError("--parallel sdp: MLX's ring does not scatter sums: leave --backend out, or take tcp");
  if (training.replicas > 1 && flags.cluster.backend != "auto" && flags.cluster.backend != "tcp")
    throw InputError(fmt::format("--replicas: {} does not split groups: leave --backend out, or take tcp",
                                 flags.cluster.backend));
}

// A model from scratch learns to end with the token of config.json, a tokenizer of its own may know another.
void check_ends(const models::ModelConfig& config, const fs::path& folder) {
  if (!fs::exists(folder / "tokenizer.json") || config.end_ids.empty()) return;
  const auto settings = find_json_file(folder / "tokenizer_config.json");
  const auto end = settings ? settings->value("eos_token", nlohmann::json()) : nlohmann::json();
  if (!end.is_string()) return;
  const auto id = text::Tokenizer(folder).id_of(end.get<std::string>());
  if (!id || std::find(config.end_ids.begin(), config.end_ids.end(), *id) != config.end_ids.end()) return;
  throw InputError(
      fmt::format("config.json's eos_token_id is {}, but the tokenizer's {} has id {}: write that there",
                  fmt::join(config.end_ids, ", "), end.dump(), *id));
}

struct Texts {
  std::vector<train::Sequence> train, valid, test;
};

Texts read_texts(const TrainFlags& flags, const models::ModelConfig& config, const fs::path& folder) {
  std::optional<text::Tokenizer> tokenizer;
  if (fs::exists(folder / "tokenizer.json")) tokenizer.emplace(folder);
  const auto chat = text::ChatTemplate::load(folder);
  const int longest = std::min(flags.longest, config.context);
  train::TextReader reader(tokenizer, chat, config.sizes.vocabulary,
                           {.end_ids = config.end_ids,
                            .mask_prompt = flags.mask_prompt,
                            .longest = longest,
                            .skip_bad = flags.skip_bad});
  const fs::path data = flags.data;
  if (!fs::is_directory(data))
    throw InputError(fmt::format("--data {}: give the folder that holds train.jsonl", flags.data));
  Texts texts{.train = reader.read(data / "train.jsonl")};
  if (fs::exists(data / "valid.jsonl")) texts.valid = reader.read(data / "valid.jsonl");
  if (flags.test) texts.test = reader.read(data / "test.jsonl");
  tell_of(reader, longest);
  return texts;
}

// Group after group, where one is lost. Whether the run came to its end.
bool train_in_groups(const TrainFlags& flags, TrainRun& run,
                     const std::function<std::unique_ptr<cluster::Conductor>()>& start,
                     const train::Batches& batches, const Texts& texts) {
  const int done = last_checkpoint(flags);
  if (done >= flags.iters) {
    note("--iters {}: {} has {} already\n", flags.iters, flags.out, counted(done, "step"));
    if (!flags.test) return true;
  }
  for (int lost = 0;; ++lost) {
    try {
      const auto conductor = start();
      return run.train(*conductor, batches, texts.valid, texts.test);
    } catch (const ClusterError& error) {
      if (InterruptGuard::interrupted()) {
        note("{}\n", error.what());
        return false;
      }
      if (lost == flags.restarts) throw;
      note("{}; starting the group again\n", error.what());
    }
  }
}

// An order to the workers is one line of JSON.
void check_orders(const TrainFlags& flags, const Texts& texts, const train::Batches& batches) {
  constexpr std::size_t id_bytes = 8, most = limits::pipe_line_bytes / id_bytes;  // with a comma
  const auto tokens_of = [&](const train::Batches& some) {
    return static_cast<std::size_t>(some.most_rows()) + static_cast<std::size_t>(some.size());
  };
  std::size_t tokens = tokens_of(batches) * static_cast<std::size_t>(flags.accumulation);
  for (const auto* others : {&texts.valid, &texts.test})
    if (!others->empty()) tokens = std::max(tokens, tokens_of({*others, flags.batch_size, /*seed=*/0}));
  if (tokens <= most) return;
  throw InputError(fmt::format(
      "a step has up to {} tokens, but at most {} can be handed to the workers at once: give a smaller "
      "--batch-size or --grad-accumulation-steps",
      tokens, most));
}

// Of all token ids: by it a run that goes on knows its texts.
std::string digest_of(const std::vector<train::Sequence>& texts) {
  std::uint64_t digest = 0;
  for (const auto& text : texts) {
    digest = mixed(digest ^ static_cast<std::uint64_t>(text.loss_from));
    for (const int id : text.ids) digest = mixed(digest ^ static_cast<std::uint64_t>(id));
  }
  return fmt::format("{:016x}", digest);
}

int run(TrainFlags flags) {
  const auto folder = find_model(flags.model);
  const auto config = models::load_config(folder);
  check_flags(flags, config);
  settle_method(flags, config, folder);
  if (flags.training.from_scratch) check_ends(config, folder);
  const auto plan = make_training_plan(flags.cluster, flags.parallel, flags.training.replicas, config);
  auto training = split_training(flags.training, flags.parallel, plan, config);
  if (plan.rank(0).host != "local")
    throw InputError("training writes its results from rank 0: let the first host be \"local\"");
  auto texts = read_texts(flags, config, folder);
  const auto count = texts.train.size();
  flags.data_digest = digest_of(texts.train);
  const train::Batches batches(std::move(texts.train), flags.batch_size, flags.training.seed);
  training.most_rows = batches.most_rows();
  training.longest_row = batches.longest_row();
  training.texts = static_cast<int>(batches.size());
  check_orders(flags, texts, batches);
  const auto lock = lock_folder(flags, folder);
  write_beside(flags, folder);
  note("{} in {} an epoch, {} for validation; {} on {}\n", counted(count, "text"),
       fmt::format("{} batch{}", batches.in_an_epoch(), batches.in_an_epoch() == 1 ? "" : "es"),
       texts.valid.size(), counted(flags.iters, "step"), describe_size(plan));
  const auto shape = flags.training.from_scratch ? unquantised_config(folder) : nlohmann::json();
  const InterruptGuard guard;
  TrainRun run(flags, folder, facts_of(flags, plan, count));
  const bool complete = train_in_groups(
      flags, run, [&] { return start(folder, plan, flags.cluster, shape, training); }, batches, texts);
  if (!complete) note("stopped after step {}; --resume goes on\n", last_checkpoint(flags));
  print_result(flags.json ? run.summary().dump() + '\n' : flags.out + '\n');
  return complete ? 0 : exit_interrupted;
}

}  // namespace

void add_train(CLI::App& program, int& exit_code) {
  auto* verb =
      program.add_subcommand("train", "Fine-tune a model on the cluster: LoRA, DoRA, QLoRA or all weights");
  auto flags = std::make_shared<TrainFlags>();
  add_train_flags(*verb, *flags);
  verb->callback([verb, flags, &exit_code] {
    settle(*verb, *flags);
    exit_code = run(*flags);
  });
}

}  // namespace tandem::cli
