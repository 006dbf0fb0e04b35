// `tandem bench`: prefill and decode apart, as llama-bench measures them.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "cli/answer.h"
#include "cli/bench_figures.h"
#include "cli/bench_train.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/training_split.h"
#include "cli/verbs.h"

namespace tandem::cli {
namespace {

constexpr int warm_up_tokens = 64;  // enough that a GPU takes its kernels of many rows

struct BenchFlags {
  std::string model;
  std::string shape;
  std::string bits = "16";
  int group = 64;
  int prompt = 512;
  int generate = 128;
  int batch = 1;
  int repeat = 5;
  bool json = false;
  cluster::Training training{.method = ""};  // or lora, dora, full
  std::string parallel = "tp";
  ClusterFlags cluster;
};

// The model as the flags name it.
struct Subject {
  std::string name, weights;
  std::filesystem::path folder;
  nlohmann::json shape;
  models::ModelConfig config;
};

Subject random_subject(const BenchFlags& flags) {
  Subject subject{std::filesystem::path(flags.shape).stem().string()};
  const bool quantised = flags.bits == "4" || flags.bits == "8";
  subject.weights =
      fmt::format("random, {}", flags.bits == "bf16" ? "bf16"
                                : quantised ? fmt::format("{} bit, groups of {}", flags.bits, flags.group)
                                            : "f16");
  subject.shape = config_with_bits(read_json_file(flags.shape), flags.bits, flags.group);
  try {
    subject.config = models::parse_config(subject.shape);
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}: {}", flags.shape, error.what()));
  }
  return subject;
}

Subject find_subject(const BenchFlags& flags) {
  if (!flags.shape.empty()) return random_subject(flags);
  const auto folder = find_model(flags.model);
  return {short_name(flags.model), "", folder, {}, models::load_config(folder)};
}

// One model under measurement.
class Bench {
 public:
  Bench(cluster::Conductor& conductor, const models::ModelConfig& config, int batch)
      : conductor_(conductor), vocabulary_(config.sizes.vocabulary), batch_(batch) {}

  // The prompts' tokens, then one more of each.
  void prefill(int tokens, Phase& phase) {
    const double seconds =
        ask(tokens, 1, phase, [](const engine::DoneEvent& done) { return done.queued_s + done.prefill_s; });
    phase.tokens = batch_ * tokens;
    phase.seconds.push_back(seconds);
  }

  // From the first token's on, as many as `tokens` of each sequence; their contexts start empty.
  void decode(int tokens, Phase& phase) {
    const double seconds =
        ask(1, tokens + 1, phase, [](const engine::DoneEvent& done) { return done.decode_s; });
    phase.tokens = batch_ * tokens;
    phase.seconds.push_back(seconds);
  }

 private:
  // The seconds of the request that took longest, by `seconds_of`.
  template <typename SecondsOf>
  double ask(int prompt, int generate, Phase& phase, SecondsOf seconds_of) {
    std::vector<engine::GenerateRequest> requests(batch_);
    for (auto& request : requests) {
      request.max_tokens = generate;  // without end ids: none ends it
      request.sampling.temperature = 0;
      for (int i = 0; i < prompt; ++i)
        request.prompt.push_back(static_cast<int>(random_() % static_cast<unsigned>(vocabulary_)));
    }
    const auto before = done_;
    double seconds = 0, wall_s = 0;
    for (const auto& done : generate_all(conductor_, std::move(requests))) {
      seconds = std::max(seconds, seconds_of(done));
      wall_s = std::max(wall_s, done.queued_s + done.prefill_s + done.decode_s);
    }
    phase.wall_s += wall_s;
    phase.steps_tokens += batch_ * (prompt + generate - 1);
    ended_ += static_cast<std::uint64_t>(batch_);
    done_ = wait_for_work();
    phase.ranks.resize(done_.size());
    for (std::size_t i = 0; i < done_.size(); ++i) {
      const RankWork first = i < before.size() ? before[i] : RankWork{};
      phase.ranks[i].step_s += done_[i].step_s - first.step_s;
      phase.ranks[i].link_s += done_[i].link_s - first.link_s;
      phase.ranks[i].panel_bytes += done_[i].panel_bytes - first.panel_bytes;
    }
    return seconds;
  }

  // What the ranks have done, once each has told it for the request that has just ended.
  std::vector<RankWork> wait_for_work() const {
    const auto deadline = std::chrono::steady_clock::now() + limits::worker_status;
    while (true) {
      std::vector<RankWork> work;
      const auto ranks = conductor_.ranks();
      for (const auto& rank : ranks) {
        if (rank.status.ended < ended_) break;
        work.push_back({rank.status.step_s, rank.status.link_s, rank.status.panel_bytes});
      }
      if (work.size() == ranks.size()) return work;
      if (std::chrono::steady_clock::now() > deadline) {
        throw ClusterError(fmt::format("rank {} does not tell what it did", work.size()));
      }
      std::this_thread::sleep_for(limits::worker_status_poll);
    }
  }

  cluster::Conductor& conductor_;
  int vocabulary_;
  int batch_;
  std::mt19937 random_{1};
  std::uint64_t ended_ = 0;
  std::vector<RankWork> done_;
};

void check(const BenchFlags& flags) {
  if (flags.model.empty() == flags.shape.empty()) {
    throw InputError("give MODEL, or --shape FILE.json for random weights: one of the two");
  }
  if (flags.prompt == 0 && flags.generate == 0) {
    throw InputError("--prompt 0 and --generate 0 leave nothing to measure");
  }
}

// A decode's prompt is one token, and what is timed begins after the first of the answer.
void check_context(const BenchFlags& flags, int context, const std::string& bound) {
  const auto refuse = [&](const char* flag, int tokens) {
    throw InputError(fmt::format("{} {} does not fit a context of {} ({})", flag, counted(tokens, "token"),
                                 counted(context, "token"), bound));
  };
  if (flags.prompt + 1 > context) refuse("--prompt: a prompt of", flags.prompt);
  if (flags.generate + 2 > context) refuse("--generate: an answer of", flags.generate);
}

// Steps of training in place of prefill and decode.
void run_training(const BenchFlags& flags, const Subject& subject) {
  const auto plan =
      make_training_plan(flags.cluster, flags.parallel, flags.training.replicas, subject.config);
  auto training = split_training(flags.training, flags.parallel, plan, subject.config);
  training.lora_layers = -1;
  training.most_rows = flags.batch * flags.prompt;
  training.longest_row = flags.prompt;
  training.texts = flags.batch;
  const auto conductor = start(subject.folder, plan, flags.cluster, subject.shape, training);
  const auto result =
      bench_training(*conductor, {flags.batch, flags.prompt, flags.repeat, subject.config.sizes.vocabulary});
  const std::string name =
      fmt::format("{}{}{}, training {}, {} by {}", subject.name, subject.weights.empty() ? "" : ", ",
                  subject.weights, training.method, describe_size(plan), flags.parallel);
  print_result(flags.json ? result.dump() + '\n' : describe_training(name, result));
}

void run(const BenchFlags& flags) {
  check(flags);
  const Subject subject = find_subject(flags);
  if (!flags.training.method.empty()) return run_training(flags, subject);
  check_context(flags, subject.config.context, "the model's");
  const auto plan = make_plan(flags.cluster, subject.config);
  const auto conductor = start(subject.folder, plan, flags.cluster, subject.shape);
  check_context(flags, conductor->capacity().context, conductor->capacity().bound);
  Bench bench(*conductor, subject.config, flags.batch);
  Phase warm_up;
  if (flags.prompt > 0) bench.prefill(std::min(flags.prompt, warm_up_tokens), warm_up);
  if (flags.generate > 0) bench.decode(1, warm_up);
  BenchFigures figures{subject.name, subject.weights, describe_size(plan), flags.repeat, flags.batch};
  for (int i = 0; i < flags.repeat; ++i) {
    if (flags.prompt > 0) bench.prefill(flags.prompt, figures.prefill);
    if (flags.generate > 0) bench.decode(flags.generate, figures.decode);
    note("{}\n", dim(fmt::format("repeat {} of {}", i + 1, flags.repeat)));
  }
  figures.ranks = conductor->ranks();
  print_result(flags.json ? to_json(figures, ranks_json(*conductor)).dump() + '\n' : describe(figures));
}

}  // namespace

void add_bench(CLI::App& program) {
  auto* verb = program.add_subcommand("bench", "Measure prefill and decode, as llama-bench does");
  auto flags = std::make_shared<BenchFlags>();
  verb->add_option("MODEL", flags->model,
                   "A folder (no tokenizer needed), or a name in the local Hugging Face cache");
  auto* shape =
      verb->add_option("--shape", flags->shape,
                       "In place of MODEL: a config.json, for which random weights are made in memory");
  verb->add_option("--bits", flags->bits, "Of the weights of --shape: MLX's affine 4 or 8, 16 (f16) or bf16")
      ->check(CLI::IsMember({"4", "8", "16", "bf16"}))
      ->needs(shape)
      ->capture_default_str();
  verb->add_option("--group", flags->group, "Inputs that share a scale, for --bits 4 and 8 of --shape")
      ->check(CLI::IsMember({32, 64, 128}))
      ->needs(shape)
      ->capture_default_str();
  verb->add_option("--prompt", flags->prompt, "Random tokens to prefill; 0: no prefill")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  verb->add_option("--generate", flags->generate, "Tokens to decode after a prompt of one; 0: no decode")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  verb->add_option("--batch", flags->batch, "Sequences computed at a time")
      ->check(CLI::Range(1, static_cast<int>(limits::batch_sequences)))
      ->capture_default_str();
  verb->add_option("--repeat", flags->repeat, "Times to measure, after a warm-up that does not count")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  verb->add_option("--train", flags->training.method,
                   "In place of prefill and decode: steps of training on --batch texts of --prompt tokens")
      ->check(CLI::IsMember({"lora", "dora", "full"}));
  add_training_flags(*verb, flags->parallel, flags->training);
  verb->add_flag("--json", flags->json, "One JSON object with every figure");
  add_request_flags(*verb, flags->cluster);
  add_cluster_flags(*verb, flags->cluster);
  verb->callback([verb, flags] {
    if (!flags->training.method.empty()) settle_activations(*verb, flags->training.dtype, flags->cluster);
    run(*flags);
  });
}

}  // namespace tandem::cli
