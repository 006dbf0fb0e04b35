#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/help.h"
#include "cli/interrupt.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/train_folder.h"
#include "cli/train_run.h"
#include "cli/training_flags.h"
#include "cli/verbs.h"
#include "cluster/train_worker.h"
#include "models/families.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "train/data.h"
#include "train/optimizer.h"
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
      {"Steps",
       fmt::format("{} of {} times {}", flags.iters, flags.accumulation, counted(flags.batch_size, "text"))},
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
  constexpr std::size_t most_named = 5;
  if (reader.cut() > 0) note("{} cut after {} tokens\n", counted(reader.cut(), "text"), longest);
  if (reader.without_loss() > 0)
    note("{} left out that had nothing to learn\n", counted(reader.without_loss(), "text"));
  const auto& skipped = reader.skipped();
  if (skipped.empty()) return;
  note("{} skipped:\n", counted(skipped.size(), "line"));
  for (std::size_t i = 0; i < std::min(most_named, skipped.size()); ++i) note("  {}\n", skipped[i]);
  if (skipped.size() > most_named) note("  and {} more\n", skipped.size() - most_named);
}

int run(TrainFlags flags) {
  if (flags.training.from_scratch && !trains_all(flags))
    throw InputError("--init: an adapter of weights that know nothing is of no use: give --method full");
  if (flags.training.balance_rate > 0 && !trains_all(flags))
    throw InputError("--balance-rate: an adapter leaves routers as they are: give --method full, or no rate");
  if (flags.training.balance_loss > 0 && !trains_all(flags))
    throw InputError("--balance-loss: an adapter leaves routers as they are: give --method full, or no loss");
  const auto folder = find_model(flags.model);
  const auto config = models::load_config(folder);
  if (flags.training.balance_loss > 0 && config.expert_layers.empty())
    throw InputError(fmt::format("--balance-loss: {} has no experts: leave it out", flags.model));
  if (flags.training.balance_rate > 0 && !config.router_bias)
    throw InputError(
        fmt::format("--balance-rate: the routers of {} have no e_score_correction_bias, as DeepSeek-V3's do: "
                    "leave it out",
                    flags.model));
  if (flags.parallel == "sdp" && flags.cluster.backend == "ring")
    throw InputError("--parallel sdp: MLX's ring does not scatter sums: leave --backend out, or take tcp");
  if (flags.training.replicas > 1 && flags.cluster.backend != "auto" && flags.cluster.backend != "tcp")
    throw InputError(fmt::format("--replicas: {} does not split groups: leave --backend out, or take tcp",
                                 flags.cluster.backend));
  settle_method(flags, config, folder);
  const auto plan = make_training_plan(flags.cluster, flags.parallel, flags.training.replicas, config);
  auto training = split_training(flags.training, flags.parallel, plan, config);
  if (plan.rank(0).host != "local")
    throw InputError("training writes its results from rank 0: let the first host be \"local\"");
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
  auto texts = reader.read(data / "train.jsonl");
  const auto count = texts.size();
  std::vector<train::Sequence> valid;
  if (fs::exists(data / "valid.jsonl")) valid = reader.read(data / "valid.jsonl");
  tell_of(reader, longest);
  train::Batches batches(std::move(texts), flags.batch_size, flags.training.seed);
  training.most_rows = batches.most_rows();
  training.longest_row = batches.longest_row();
  training.texts = std::min(flags.batch_size, static_cast<int>(count));
  write_beside(flags, folder);
  note("{} in {} an epoch, {} for validation; {} on {}\n", counted(count, "text"),
       fmt::format("{} batch{}", batches.in_an_epoch(), batches.in_an_epoch() == 1 ? "" : "es"), valid.size(),
       counted(flags.iters, "step"), describe_size(plan));
  const auto shape = flags.training.from_scratch ? unquantised_config(folder) : nlohmann::json();
  const InterruptGuard guard;
  TrainRun run(flags, folder, facts_of(flags, plan, count));
  bool complete = last_checkpoint(flags) >= flags.iters;
  if (complete)
    note("nothing is left to do: {} steps of --iters {} are done\n", last_checkpoint(flags), flags.iters);
  for (int lost = 0; !complete; ++lost) {
    try {
      const auto conductor = start(folder, plan, flags.cluster, shape, training);
      complete = run.train(*conductor, batches, valid);
      break;
    } catch (const ClusterError& error) {
      if (lost == flags.restarts || InterruptGuard::interrupted()) throw;
      note("{}; starting the group again\n", error.what());
    }
  }
  if (!complete) note("stopped after step {}; --resume goes on\n", last_checkpoint(flags));
  print_result(flags.json ? run.summary().dump() + '\n' : flags.out + '\n');
  return complete ? 0 : exit_interrupted;
}

void add_lora_flags(CLI::App& verb, cluster::Training& training) {
  verb.add_option("--lora-rank", training.lora_rank, "Of each adapter's two matrices")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  verb.add_option("--lora-scale", training.lora_scale, "Multiplies what adapters add")
      ->check(at_least(0.0))
      ->capture_default_str();
  verb.add_option("--num-layers", training.lora_layers, "The last so many layers are adapted; -1: all")
      ->check(at_least(-1))
      ->capture_default_str();
  verb.add_option("--lora-keys", training.lora_keys,
                  "Which products: self_attn.q_proj,self_attn.v_proj; of experts: mlp.switch_mlp.gate_proj, "
                  "….up_proj, ….down_proj [all linear, no experts']")
      ->delimiter(',');
}

void add_step_flags(CLI::App& verb, TrainFlags& flags) {
  const auto positive = at_least(1);
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
  verb.add_flag("--skip-bad-data", flags.skip_bad,
                "Lines that are no text are counted, named and left out; else the first ends it");
  verb.add_flag("--mask-prompt", flags.mask_prompt, "Only the last answer of each text counts");
  verb.add_option("--optimizer", training.optimizer, "What makes a step of a gradient")
      ->check(CLI::IsMember({"adamw", "sgd", "lion", "adafactor", "muon"}))
      ->capture_default_str();
  verb.add_option("--optimizer-bits", training.optimizer_bits,
                  "Of each number that adamw remembers of matrices: 8 takes a quarter of the memory of 32")
      ->check(CLI::IsMember({8, 32}))
      ->capture_default_str();
  verb.add_option("--learning-rate", flags.schedule.peak, "The highest of the schedule")
      ->check(at_least(0.0))
      ->capture_default_str();
  verb.add_option("--lr-schedule", flags.schedule.name, "How the rate falls after the warm-up")
      ->check(CLI::IsMember({"constant", "linear", "cosine", "wsd"}))
      ->capture_default_str();
  verb.add_option("--warmup", flags.schedule.warm_up, "Steps in which the rate rises")
      ->check(at_least(0))
      ->capture_default_str();
  verb.add_option("--beta1", training.beta1,
                  "Momentum; 0: none [0.9; 0.95 of muon, whose embeddings, norms and routers take adamw with "
                  "0.9; 0 of adafactor]")
      ->check(below_one());
  verb.add_option("--beta2", training.beta2,
                  "Of the squared gradient's mean in adamw, of the momentum kept in lion")
      ->check(below_one())
      ->capture_default_str();
  verb.add_option("--weight-decay", training.weight_decay,
                  "What a step takes off each weight, times the learning rate")
      ->check(at_least(0.0))
      ->capture_default_str();
  verb.add_option("--clip", training.clip, "The gradient's largest norm; 0: any")
      ->check(at_least(0.0))
      ->capture_default_str();
  verb.add_option("--balance-rate", training.balance_rate,
                  "With --method full: what a step adds to the bias by which DeepSeek-V3's routers choose an "
                  "expert that had less than its share of tokens, and takes off the others'; 0: nothing. V3: "
                  "0.001")
      ->check(at_least(0.0))
      ->capture_default_str();
  verb.add_option(
          "--balance-loss", training.balance_loss,
          "With --method full: the weight in the loss of how unevenly a text's tokens choose experts, as "
          "DeepSeek-V3 has it; 0: none. V3: 0.0001")
      ->check(at_least(0.0))
      ->capture_default_str();
  verb.add_option("--seed", training.seed, "Of the order of texts and of adapters' first values")
      ->capture_default_str();
}

void add_report_flags(CLI::App& verb, TrainFlags& flags) {
  const auto positive = at_least(1);
  verb.add_option("--steps-per-report", flags.report_every, "Steps between lines on loss and speed")
      ->check(positive)
      ->capture_default_str();
  verb.add_option("--steps-per-eval", flags.evaluate_every, "Steps between evaluations on valid.jsonl")
      ->check(positive)
      ->capture_default_str();
  verb.add_option("--val-batches", flags.evaluate_batches, "Micro-batches of an evaluation; -1: all")
      ->check(at_least(-1))
      ->capture_default_str();
  verb.add_option("--save-every", flags.save_every, "Steps between checkpoints")
      ->check(positive)
      ->capture_default_str();
  verb.add_flag("--resume", flags.resume, "Go on from the checkpoint in OUT, on this or another plan");
  verb.add_option("--restarts", flags.restarts,
                  "How often a group that lost a worker or a link starts again from its checkpoint")
      ->check(at_least(0))
      ->capture_default_str();
  verb.add_option("--save-dtype", flags.save_dtype, "Of --method full [the model's]")
      ->check(CLI::IsMember({"bfloat16", "float16", "float32"}));
  verb.add_flag("--json", flags.json,
                "At the end one JSON object in place of the folder's name; its tokens are those of this run, "
                "without what --resume goes on from");
}

}  // namespace

void add_train(CLI::App& program, int& exit_code) {
  auto* verb =
      program.add_subcommand("train", "Fine-tune a model on the cluster: LoRA, DoRA, QLoRA or all weights");
  auto flags = std::make_shared<TrainFlags>();
  verb->add_option("MODEL", flags->model, "A folder, or a name in the local Hugging Face cache")->required();
  verb->add_option("--data", flags->data,
                   "A folder with train.jsonl and perhaps valid.jsonl, as mlx-lm has them")
      ->required();
  verb->add_option("--out,--adapter-path", flags->out, "The folder to write")->capture_default_str();
  verb->add_option(
          "--method", flags->training.method,
          "lora, or dora, which learns each row's magnitude apart, or qlora, which is lora of quantised "
          "weights alone (the others take them too); or full: every weight")
      ->check(CLI::IsMember({"lora", "dora", "qlora", "full"}))
      ->capture_default_str();
  verb->add_flag(
      "--init", flags->training.from_scratch,
      "Begin with random weights of MODEL's config.json; its folder needs no others. With --method full");
  add_training_flags(*verb, flags->parallel, flags->training);
  add_lora_flags(*verb, flags->training);
  add_step_flags(*verb, *flags);
  add_report_flags(*verb, *flags);
  add_cluster_flags(*verb, flags->cluster);
  verb->callback([verb, flags, &exit_code] {
    auto& training = flags->training;
    if (verb->count("--beta1") == 0) training.beta1 = train::usual_beta1(training.optimizer);
    settle_activations(*verb, training.dtype, flags->cluster);
    exit_code = run(*flags);
  });
}

}  // namespace tandem::cli
