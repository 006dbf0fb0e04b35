#include "cli/train_flags.h"

#include "base/limits.h"
#include "cli/config_file.h"
#include "cli/help.h"
#include "cli/training_split.h"
#include "train/optimizer.h"

namespace tandem::cli {
namespace {

void add_model_flags(CLI::App& verb, TrainFlags& flags) {
  verb.add_option("MODEL,--model", flags.model, "A folder, or a name in the local Hugging Face cache")
      ->required();
  verb.add_flag("--train")->group("");  // mlx_lm.lora has it
  verb.add_option("--data", flags.data,
                  "A folder with train.jsonl and perhaps valid.jsonl and test.jsonl, as mlx-lm has them")
      ->required();
  verb.add_option("--out,--adapter-path", flags.out, "The folder to write")->capture_default_str();
  verb.add_option(
          "--method,--fine-tune-type", flags.training.method,
          "lora, or dora, which learns each row's magnitude apart, or qlora, which is lora of quantised "
          "weights alone (the others take them too); or full: every weight")
      ->check(CLI::IsMember({"lora", "dora", "qlora", "full"}))
      ->capture_default_str();
  verb.add_flag(
      "--init", flags.training.from_scratch,
      "Begin with random weights of MODEL's config.json; its folder needs no others. With --method full");
}

void add_lora_flags(CLI::App& verb, cluster::Training& training, std::string& first_adapter) {
  verb.add_option("--lora-rank", training.lora_rank, "Rank of each adapter's two matrices")
      ->check(CLI::Range(1, limits::lora_rank))
      ->capture_default_str();
  verb.add_option("--lora-scale", training.lora_scale, "Multiplies what adapters add")
      ->check(at_least(0.0F))
      ->capture_default_str();
  verb.add_option("--num-layers", training.lora_layers, "The last so many layers are adapted; -1: all")
      ->check(at_least(-1))
      ->check(not_zero())
      ->capture_default_str();
  verb.add_option("--lora-keys", training.lora_keys,
                  "Which products: self_attn.q_proj,self_attn.v_proj; of experts: mlp.switch_mlp.gate_proj, "
                  "….up_proj, ….down_proj [all linear, no experts']")
      ->delimiter(',');
  verb.add_option(
          "--resume-adapter-file", first_adapter,
          "Begin with the adapters of another run, or of mlx-lm: their folder, or adapters.safetensors")
      ->check(CLI::ExistingPath);
}

void add_step_flags(CLI::App& verb, TrainFlags& flags) {
  const auto positive = at_least(1);
  verb.add_option("--iters", flags.iters, "Steps")->check(positive)->capture_default_str();
  verb.add_option("--batch-size", flags.batch_size, "Texts of a micro-batch")
      ->check(positive)
      ->capture_default_str();
  verb.add_option("--grad-accumulation-steps", flags.accumulation, "Micro-batches of a step")
      ->check(positive)
      ->capture_default_str();
  verb.add_option("--max-seq-length", flags.longest, "Tokens after which a text is cut")
      ->check(CLI::Range(2, limits::text_tokens))
      ->capture_default_str();
  verb.add_flag("--skip-bad-data", flags.skip_bad,
                "Lines that are no text are counted, named and left out; else the first ends it");
  verb.add_flag("--mask-prompt", flags.mask_prompt, "Only the last answer of each text counts");
  verb.add_option("--seed", flags.training.seed, "Seed of the order of texts and of first values")
      ->check(whole_number())
      ->capture_default_str();
}

void add_optimizer_flags(CLI::App& verb, TrainFlags& flags) {
  auto& training = flags.training;
  verb.add_option("--optimizer", training.optimizer,
                  "What makes a step of a gradient; adam: adamw without its weight decay")
      ->check(CLI::IsMember(optimizer_names))
      ->capture_default_str();
  verb.add_option("--optimizer-bits", training.optimizer_bits,
                  "Bits of each moment that adamw keeps of matrices: 8 takes a quarter of the memory of 32")
      ->check(CLI::IsMember({8, 32}))
      ->capture_default_str();
  verb.add_option("--learning-rate", flags.schedule.peak, "The highest learning rate of the schedule")
      ->check(at_least(0.0F))
      ->capture_default_str();
  verb.add_option("--lr-schedule", flags.schedule.name, "How the rate falls after the warm-up")
      ->check(CLI::IsMember({"constant", "linear", "cosine", "wsd"}))
      ->capture_default_str();
  verb.add_option("--warmup", flags.schedule.warm_up, "Warm-up: steps in which the rate rises from 0")
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
      ->check(at_least(0.0F))
      ->capture_default_str();
  verb.add_option("--clip", training.clip, "Gradients are clipped to this global norm; 0: they are not")
      ->check(at_least(0.0F))
      ->capture_default_str();
}

void add_balance_flags(CLI::App& verb, cluster::Training& training) {
  verb.add_option("--balance-rate", training.balance_rate,
                  "With --method full: what a step adds to the bias by which DeepSeek-V3's routers choose an "
                  "expert that had less than its share of tokens, and takes off the others'; 0: nothing. V3: "
                  "0.001")
      ->check(at_least(0.0F))
      ->capture_default_str();
  verb.add_option(
          "--balance-loss", training.balance_loss,
          "With --method full: the weight in the loss of how unevenly a text's tokens choose experts, as "
          "DeepSeek-V3 has it; 0: none. V3: 0.0001")
      ->check(at_least(0.0F))
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
  verb.add_flag("--test", flags.test, "At the end also evaluate on test.jsonl");
  verb.add_option("--test-batches", flags.test_batches, "Micro-batches of test.jsonl; -1: all")
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
  verb.add_option("--save-dtype", flags.save_dtype,
                  "Dtype of the weights that --method full saves [the model's]")
      ->check(CLI::IsMember({"bfloat16", "float16", "float32"}));
  verb.add_flag("--json", flags.json,
                "At the end one JSON object in place of the folder's name; its tokens are those of this run, "
                "without what --resume goes on from");
}

}  // namespace

void add_train_flags(CLI::App& verb, TrainFlags& flags) {
  const auto grouped = [&](const char* group, const auto& add) {
    const auto before = verb.get_options().size();
    add();
    const auto all = verb.get_options();
    for (std::size_t i = before; i < all.size(); ++i) all[i]->group(group);
  };
  add_config_flag(verb);
  add_model_flags(verb, flags);
  grouped("Split and memory", [&] { add_training_flags(verb, flags.parallel, flags.training); });
  grouped("Adapter", [&] { add_lora_flags(verb, flags.training, flags.first_adapter); });
  grouped("Steps and texts", [&] { add_step_flags(verb, flags); });
  grouped("Optimizer", [&] { add_optimizer_flags(verb, flags); });
  grouped("Balance of experts", [&] { add_balance_flags(verb, flags.training); });
  grouped("Reports and checkpoints", [&] { add_report_flags(verb, flags); });
  // As of mlx_lm.lora's, the last one given counts.
  for (auto* option : verb.get_options())
    if (option->get_expected_max() == 1) option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  add_cluster_flags(verb, flags.cluster);
}

void settle(const CLI::App& verb, TrainFlags& flags) {
  auto& training = flags.training;
  if (training.optimizer == "adam") {
    training.optimizer = "adamw";
    if (verb.count("--weight-decay") == 0) training.weight_decay = 0;
  }
  if (verb.count("--beta1") == 0) training.beta1 = train::usual_beta1(training.optimizer);
  settle_activations(verb, training.dtype, flags.cluster);
  flags.as_config = config_text(verb);
}

}  // namespace tandem::cli
