#include "models/quantize.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/interrupt.h"
#include "cli/progress_bar.h"
#include "cli/session.h"
#include "cli/size.h"
#include "cli/stoppable.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "hardware/machine.h"

namespace tandem::cli {
namespace {

struct QuantizeFlags {
  std::string model;
  std::string out;
  int bits = 0;
  int group = 64;
  std::vector<std::string> keep;
  std::string max_shard = "5GB";
  bool json = false;
};

models::KeepRule parse_keep(const std::string& text) {
  const auto equals = text.rfind('=');
  const std::string bits = equals == std::string::npos ? "" : text.substr(equals + 1);
  if (equals == 0 || (bits != "4" && bits != "8" && bits != "16")) {
    throw InputError(
        fmt::format("--keep \"{}\" is not PATTERN=BITS with 4, 8 or 16 bits, such as \"lm_head=8\"", text));
  }
  return {text.substr(0, equals), std::stoi(bits)};
}

// A matrix's codes, scales and biases count too.
double bits_a_weight(const models::QuantizeReport& report) {
  return 8 * static_cast<double>(report.progress.total_bytes) / static_cast<double>(report.weights);
}

void print_report(const QuantizeFlags& flags, const models::QuantizeReport& report, double seconds) {
  const auto& progress = report.progress;
  const auto peak = hardware::process_memory().peak_bytes;
  if (!report.unused.empty()) {
    note("left out: {} that the model does not compute with, as {}\n",
         counted(report.unused.size(), "tensor"), report.unused.front());
  }
  if (!report.indivisible.empty()) {
    note("left as they are, their inputs being no multiple of {}: {}\n", flags.group,
         fmt::join(report.indivisible, ", "));
  }
  note("{} in {}, {:.2f} bits a weight; wrote {} in {:.1f} s, {}/s\n", format_bytes(progress.total_bytes),
       counted(progress.shards, "shard"), bits_a_weight(report), format_bytes(progress.written_bytes),
       seconds,
       format_bytes(static_cast<std::uint64_t>(static_cast<double>(progress.written_bytes) / seconds)));
  note("peak memory {}, largest tensor read {}\n", format_bytes(peak),
       format_bytes(report.largest_piece_bytes));
  if (!flags.json) return print_result(flags.out + '\n');
  const nlohmann::json object{{"folder", flags.out},
                              {"bits", flags.bits},
                              {"group", flags.group},
                              {"bits_per_weight", bits_a_weight(report)},
                              {"weights", report.weights},
                              {"bytes", progress.total_bytes},
                              {"written_bytes", progress.written_bytes},
                              {"shards", progress.shards},
                              {"peak_memory_bytes", peak},
                              {"largest_tensor_bytes", report.largest_piece_bytes},
                              {"not_quantized", report.indivisible},
                              {"left_out", report.unused},
                              {"seconds", seconds}};
  print_result(object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n');
}

int run(const QuantizeFlags& flags) {
  models::QuantizeOptions options{.quantisation = {flags.bits, flags.group},
                                  .keep = {},
                                  .max_shard_bytes = parse_size(flags.max_shard, "--max-shard")};
  for (const auto& text : flags.keep) options.keep.push_back(parse_keep(text));
  ProgressBar bar;
  const models::QuantizeWatcher watcher{
      .note = [&](const auto& line) { bar.note(dim(line)); },
      .progress =
          [&](const models::QuantizeProgress& progress) {
            bar.show({progress.total_bytes, progress.there_bytes, progress.written_bytes,
                      fmt::format("{} of {} shards", progress.there_shards, progress.shards)});
          },
      .stopped = [] { return InterruptGuard::interrupted(); }};
  return run_stoppable<models::QuantizeStopped>(
      bar, dim("stopped; the same command goes on from here"),
      [&] { return models::quantize(find_model(flags.model), flags.out, options, watcher); },
      [&](const models::QuantizeReport& report, double seconds) { print_report(flags, report, seconds); });
}

}  // namespace

void add_quantize(CLI::App& program, int& exit_code) {
  auto* verb = program.add_subcommand("quantize", "Write a model anew with 4 or 8 bits a weight");
  auto flags = std::make_shared<QuantizeFlags>();
  verb->add_option("MODEL", flags->model, "A folder, or a name in the local Hugging Face cache")->required();
  verb->add_option("OUT", flags->out, "The folder to make")->required();
  verb->add_option("--bits", flags->bits, "Bits of a weight: 4 or 8")
      ->required()
      ->check(CLI::IsMember({4, 8}));
  verb->add_option("--group", flags->group, "Weights that share a scale: 32, 64 or 128")
      ->check(CLI::IsMember({32, 64, 128}))
      ->capture_default_str();
  verb->add_option(
          "--keep", flags->keep,
          "PATTERN=BITS: other bits (4, 8; 16: as they are) for the matrices of such a name, as "
          "\"lm_head=8\" or \"*.down_proj=8\"; several times for several, of which the last that fits counts")
      ->allow_extra_args(false);
  verb->add_option("--max-shard", flags->max_shard, "The most that a file of weights holds, as 500MB or 2GiB")
      ->capture_default_str();
  verb->add_flag("--json", flags->json, "One JSON object with bytes, bits a weight and peak memory");
  verb->footer(
      "OUT has mlx-community's layout, which mlx-lm reads too. Norms and routers stay as they are, and so "
      "do\n"
      "matrices whose inputs are no multiple of the group. The model is read a tensor at a time.\n"
      "One that was stopped has no config.json; the same command keeps its whole shards and goes on.");
  verb->callback([flags, &exit_code] { exit_code = run(*flags); });
}

}  // namespace tandem::cli
