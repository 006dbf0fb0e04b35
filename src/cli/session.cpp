#include "cli/session.h"

#include <fmt/format.h>

#include <cstdio>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "base/log.h"
#include "cli/environment.h"
#include "cli/help.h"
#include "cli/interrupt.h"
#include "cli/loading_display.h"
#include "cli/pin.h"
#include "cli/size.h"
#include "cli/terminal.h"
#include "models/families.h"
#include "parallel/shard.h"
#include "weights/hub_cache.h"

#if defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

namespace tandem::cli {
namespace {

namespace fs = std::filesystem;

// This program's own file, for the local workers.
fs::path own_program() {
#if defined(__APPLE__)
  std::string path(4096, '\0');
  auto size = static_cast<std::uint32_t>(path.size());
  if (_NSGetExecutablePath(path.data(), &size) != 0) throw ClusterError("cannot find the program's own path");
  return fs::canonical(path.c_str());
#else
  return fs::read_symlink("/proc/self/exe");
#endif
}

std::string range(parallel::Range part) { return fmt::format("{}-{}", part.begin, part.end - 1); }

}  // namespace

void add_cluster_flags(CLI::App& verb, ClusterFlags& flags) {
  verb.option_defaults()->group(cluster_group);
  verb.add_option(
          "--ranks", flags.ranks,
          fmt::format("Workers on this machine, each with its share of the model [{}]", flags.default_ranks))
      ->check(CLI::Range(1, limits::ranks));
  verb.add_option("--hosts", flags.hosts,
                  "One worker on each: local, or a name that ssh knows (local,studio2)")
      ->delimiter(',');
  verb.add_option(
      "--plan", flags.plan,
      "tp: every rank has a part of each matrix; pp: every rank has some of the layers; or a plan "
      "file (JSON) in place of --ranks and --hosts [tp]");
  verb.add_option("--device", flags.device, "Where each worker computes")
      ->check(CLI::IsMember({"auto", "cpu", "gpu"}))
      ->capture_default_str();
  verb.add_option("--backend", flags.backend,
                  "The data plane: auto takes jaccl or nccl where every rank has it, else tcp")
      ->check(CLI::IsMember({"auto", "tcp", "ring", "jaccl", "nccl"}))
      ->capture_default_str();
  verb.add_option("--wire", flags.wire,
                  "What sums over ranks are on their way as; bfloat16 halves the bytes (in training, what "
                  "that takes from "
                  "a gradient is added to the next one)")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  verb.add_option("--fp8", flags.fp8,
                  "What DeepSeek's FP8 weights become: bfloat16, float32 (exact), or 8bit (half of "
                  "bfloat16's memory)")
      ->check(CLI::IsMember({"bfloat16", "float32", "8bit"}))
      ->capture_default_str();
  verb.add_option("--activations", flags.activations,
                  "On CPU: auto rounds them to int8 for quantised weights and to bfloat16 for bfloat16 ones")
      ->check(CLI::IsMember({"auto", "float32"}))
      ->capture_default_str();
  verb.add_flag("--cache-shards", flags.cache_shards,
                "A machine that lacks the model keeps the weights that another one sends it, in "
                "~/.cache/tandem/shards, and reads them there next time");
  verb.add_option("--threads", flags.threads,
                  "Threads of each worker [its machine's physical cores, shared by the ranks there]")
      ->check(CLI::Range(1, limits::cores));
  verb.add_option("--pin", flags.pin,
                  "The core, or cores, of each rank on this machine: 0,1 or 0-3,4-7 (Linux)")
      ->delimiter(',');
  verb.add_option("--remote-program", flags.remote_program, "tandem on the other machines")
      ->capture_default_str();
  verb.add_flag("-v,--verbose", flags.verbose, "Log more to stderr");
  verb.option_defaults()->group("Options");
}

void add_request_flags(CLI::App& verb, ClusterFlags& flags) {
  verb.add_option(
          "--context", flags.context.tokens,
          "Longest context of a request, tokens of prompt and answer [the model's, or what memory allows]")
      ->check(at_least(1));
  verb.add_option_function<std::string>(
      "--kv-memory",
      [&flags](const std::string& text) { flags.context.kv_bytes = parse_size(text, "--kv-memory"); },
      "Most memory for keys and values on each rank, as 8GB [what is free, but for a margin]");
  verb.add_option(
          "--kv-bits", flags.kv_bits,
          "Of cached keys and values: 16 holds them as computed (float32 on CPU); 8 takes 9/16 of that "
          "memory on GPU, 17/64 on CPU")
      ->check(CLI::IsMember({8, 16}))
      ->capture_default_str();
  verb.add_option("--adapter", flags.adapter,
                  "A folder with low-rank adapters, as tandem train and mlx-lm write them, on every machine");
}

void check_path(const std::string& path) {
  try {
    (void)nlohmann::json(path).dump();
  } catch (const nlohmann::json::type_error&) {
    throw InputError(fmt::format("{}: a path must be UTF-8", path));
  }
}

fs::path find_model(const std::string& model) {
  check_path(model);
  return weights::resolve_model(model, hub_cache());
}

std::string short_name(const std::string& model) {
  if (!fs::is_directory(model)) return model;
  const fs::path path = fs::canonical(model);
  return path.filename().string();
}

parallel::Plan make_plan(const ClusterFlags& flags, const models::ModelConfig& config, int replicas) {
  const bool from_file = !flags.plan.empty() && flags.plan != "tp" && flags.plan != "pp";
  if (from_file && (!flags.hosts.empty() || flags.ranks)) {
    throw InputError(
        fmt::format("--plan {} is a file, which names the ranks itself: give it without --ranks and --hosts",
                    flags.plan));
  }
  if (!flags.hosts.empty() && flags.ranks && *flags.ranks != static_cast<int>(flags.hosts.size())) {
    throw InputError(fmt::format("--ranks {} does not fit the {} of --hosts: give one of the two",
                                 *flags.ranks, counted(flags.hosts.size(), "host")));
  }
  parallel::Plan plan;
  if (from_file) {
    plan = parallel::plan_from_json(read_json_file(flags.plan));
  } else {
    auto hosts = flags.hosts.empty()
                     ? std::vector<std::string>(flags.ranks.value_or(flags.default_ranks), "local")
                     : flags.hosts;
    plan = flags.plan == "pp"
               ? parallel::pipeline_plan(hosts, models::layer_sizes(config), std::max(1, replicas))
               : parallel::tensor_parallel_plan(hosts, config.layers);
    plan = parallel::plan_from_json(to_json(plan));  // the same checks as a file's
  }
  parallel::validate(plan, config.divisible(), replicas);
  if (plan.stages.size() > 1 && flags.backend != "auto" && flags.backend != "tcp") {
    throw InputError(
        fmt::format("--backend {}: a plan of several stages needs tcp; leave --backend out", flags.backend));
  }
  return plan;
}

std::string describe_size(const parallel::Plan& plan) {
  const auto stages = plan.stages.size();
  return fmt::format("{}{}", counted(plan.world_size(), "rank"),
                     stages > 1 ? fmt::format(" in {} stages", stages) : "");
}

std::string describe_plan(const parallel::Plan& plan, const models::ModelConfig& config) {
  std::vector<std::vector<std::string>> rows{
      {"rank", "host", "layers", "share", "query heads", "kv heads", "ffn columns", "vocabulary"}};
  int number = 0;
  for (const auto& stage : plan.stages) {
    // The embedding is the first stage's, the output matrix the last one's.
    const bool at_an_end = &stage == &plan.stages.front() || &stage == &plan.stages.back();
    std::vector<double> shares;
    for (const auto& rank : stage.ranks) shares.push_back(rank.share);
    for (std::size_t i = 0; i < stage.ranks.size(); ++i) {
      const auto shard = parallel::shard_of(config.sizes, shares, static_cast<int>(i));
      rows.push_back({std::to_string(number++), stage.ranks[i].host,
                      range({stage.first_layer, stage.end_layer}), fmt::format("{:.0f} %", 100 * shares[i]),
                      range(shard.query_heads), range(shard.kv_heads), range(shard.ffn),
                      at_an_end ? range(shard.vocabulary) : "-"});
    }
  }
  return format_table(rows);
}

std::unique_ptr<cluster::Conductor> start(const fs::path& folder, const parallel::Plan& plan,
                                          const ClusterFlags& flags, const nlohmann::json& shape,
                                          const std::optional<cluster::Training>& training) {
  if (flags.verbose) log::configure(log::Level::info);
  cluster::ConductorOptions options{.model = folder.string(),
                                    .shape = shape,
                                    .plan = plan,
                                    .cache_shards = flags.cache_shards,
                                    .device = flags.device,
                                    .backend = flags.backend,
                                    .wire = flags.wire,
                                    .fp8 = flags.fp8,
                                    .activations = flags.activations,
                                    .context = flags.context,
                                    .kv_bits = flags.kv_bits,
                                    .adapter = flags.adapter,
                                    .training = training,
                                    .threads = flags.threads,
                                    .cores = parse_pin(flags.pin, plan),
                                    .program = own_program(),
                                    .remote_program = flags.remote_program,
                                    .verbosity = flags.verbose ? 1 : 0,
                                    .on_wait = [] {
                                      if (InterruptGuard::interrupted()) throw Interrupted();
                                    }};
  std::vector<std::string> hosts;
  for (int rank = 0; rank < plan.world_size(); ++rank) hosts.push_back(plan.rank(rank).host);
  LoadingDisplay display(std::move(hosts));
  try {
    auto conductor = std::make_unique<cluster::Conductor>(std::move(options),
                                                          [&](const auto& ranks) { display.show(ranks); });
    display.finish();
    // Not by fmt::print, which throws where stderr is closed.
    if (!training) std::fputs((dim(describe(conductor->capacity())) + "\n").c_str(), stderr);
    return conductor;
  } catch (...) {
    display.clear();
    throw;
  }
}

nlohmann::json ranks_json(const cluster::Conductor& conductor) {
  auto list = nlohmann::json::array();
  int number = 0;
  for (const auto& rank : conductor.ranks()) {
    list.push_back({{"rank", number++},
                    {"host", rank.host},
                    {"pid", rank.listening->pid},
                    {"device", rank.ready->device},
                    {"threads", rank.ready->threads},
                    {"weight_bytes", rank.ready->weight_bytes},
                    {"received_bytes", rank.ready->received_bytes},
                    {"load_s", rank.ready->load_s},
                    {"replicated_bytes", rank.ready->replicated_bytes},
                    {"step_bytes", rank.ready->step_bytes},
                    {"cache_bytes", rank.status.cache_bytes},
                    {"resident_bytes", rank.status.resident_bytes},
                    {"peak_bytes", rank.status.peak_bytes}});
  }
  return list;
}

std::string describe_ranks(const cluster::Conductor& conductor) {
  std::vector<std::vector<std::string>> rows{{"rank", "host", "device", "weights", "memory", "peak"}};
  int number = 0;
  for (const auto& rank : conductor.ranks()) {
    rows.push_back({std::to_string(number++), rank.host, rank.ready->device,
                    format_bytes(rank.ready->weight_bytes), format_bytes(rank.status.resident_bytes),
                    format_bytes(rank.status.peak_bytes)});
  }
  return format_table(rows);
}

}  // namespace tandem::cli
