#include "models/fuse.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/interrupt.h"
#include "cli/progress_bar.h"
#include "cli/session.h"
#include "cli/stoppable.h"
#include "cli/terminal.h"
#include "cli/verbs.h"

namespace tandem::cli {
namespace {

struct FuseFlags {
  std::string model, adapter, out;
  bool json = false;
};

void print_report(const FuseFlags& flags, const models::FuseProgress& done) {
  note("added the adapter to {} matrices, {} in all\n", done.fused, format_bytes(done.there_bytes));
  const nlohmann::json object{{"folder", flags.out}, {"matrices", done.fused}, {"bytes", done.there_bytes}};
  print_result(
      (flags.json ? object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) : flags.out) +
      '\n');
}

int run(const FuseFlags& flags) {
  ProgressBar bar;
  const models::FuseWatcher watcher{
      .note = [&](const auto& line) { bar.note(dim(line)); },
      .progress =
          [&](const models::FuseProgress& progress) {
            bar.show({progress.total_bytes, progress.there_bytes, progress.there_bytes,
                      fmt::format("{} of {} matrices", progress.fused, progress.matrices)});
          },
      .stopped = [] { return InterruptGuard::interrupted(); }};
  return run_stoppable<models::FuseStopped>(
      bar, dim("stopped"),
      [&] { return models::fuse(find_model(flags.model), flags.adapter, flags.out, watcher); },
      [&](const models::FuseProgress& done, double) { print_report(flags, done); });
}

}  // namespace

void add_fuse(CLI::App& program, int& exit_code) {
  auto* verb =
      program.add_subcommand("fuse", "Write a model anew with a trained adapter added to its weights");
  auto flags = std::make_shared<FuseFlags>();
  verb->add_option("MODEL", flags->model, "A folder, or a name in the local Hugging Face cache")->required();
  verb->add_option("OUT", flags->out, "The folder to make")->required();
  verb->add_option("--adapter,--adapter-path", flags->adapter,
                   "The folder of tandem train or mlx-lm, with adapters.safetensors and adapter_config.json")
      ->required();
  verb->add_flag("--json", flags->json, "One JSON object in place of the folder's name");
  verb->footer(
      "Every matrix keeps its format: one of 4 or 8 bits is quantised anew after the adapter is added. The "
      "model is\n"
      "read a tensor at a time.");
  verb->callback([flags, &exit_code] { exit_code = run(*flags); });
}

}  // namespace tandem::cli
