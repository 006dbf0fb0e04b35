#include <fmt/format.h>

#include "base/limits.h"
#include "cli/environment.h"
#include "cli/interrupt.h"
#include "cli/pull_display.h"
#include "cli/stoppable.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "weights/hub_pull.h"

namespace tandem::cli {
namespace {

struct PullFlags {
  std::string model;
  std::vector<std::string> include;
  int retries = limits::hub_retries;
  bool json = false;
};

void print_report(const PullFlags& flags, const weights::PullRequest& request,
                  const weights::PullReport& report, double seconds) {
  if (!flags.json) return print_result(report.folder.string() + '\n');
  const nlohmann::json object{{"model", request.model.id()},
                              {"revision", request.model.revision_or_main()},
                              {"commit", report.commit},
                              {"folder", report.folder.string()},
                              {"files", report.progress.files},
                              {"bytes", report.progress.total_bytes},
                              {"fetched_bytes", report.progress.fetched_bytes},
                              {"seconds", seconds}};
  print_result(object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n');
}

int run(const PullFlags& flags) {
  const weights::PullRequest request{
      .model = weights::parse_model_name(flags.model),
      .hub_cache = hub_cache(),
      .hub = {weights::checked_endpoint(hub_endpoint()), hub_token(), certificate_file()},
      .include = flags.include,
      .retries = flags.retries};
  PullDisplay display(flags.model);
  const weights::PullWatcher watcher{
      .note = [&](const auto& line) { display.note(line); },
      .planned = [&](const auto& commit, const auto& files,
                     const auto& progress) { display.planned(commit, files, progress); },
      .progress = [&](const auto& progress) { display.progress(progress); },
      .finished = [&](const auto& file) { display.finished(file); },
      .stopped = [] { return InterruptGuard::interrupted(); }};
  return run_stoppable<weights::PullStopped>(
      display, "stopped; the next pull goes on from here", [&] { return weights::pull(request, watcher); },
      [&](const auto& report, double seconds) { print_report(flags, request, report, seconds); });
}

}  // namespace

void add_pull(CLI::App& program, int& exit_code) {
  auto* verb =
      program.add_subcommand("pull", "Download a model from the Hugging Face hub into the local cache");
  auto flags = std::make_shared<PullFlags>();
  verb->add_option("NAME", flags->model, "ORG/NAME, or ORG/NAME@REVISION: a branch, a tag or a commit [main]")
      ->required();
  verb->add_option(
          "--include", flags->include,
          "Files to download, as \"*.json\"; several times for several patterns [what running needs: "
          "configuration, tokenizer, chat template, *.safetensors]")
      ->allow_extra_args(false);
  verb->add_option("--retries", flags->retries,
                   "How often a file is tried again in a row where the network or the hub fails")
      ->check(CLI::Range(0, limits::hub_retries_most))
      ->capture_default_str();
  verb->add_flag("--json", flags->json, "One JSON object with commit, folder, files and bytes");
  verb->footer(
      "Prints the model's folder in the cache: HF_HUB_CACHE, else HF_HOME/hub, else "
      "~/.cache/huggingface/hub.\n"
      "A pull that was stopped goes on where it was. HF_TOKEN opens gated and private models and is sent to\n"
      "the hub's own host alone; HF_ENDPOINT names another hub; SSL_CERT_FILE the certificates to trust.");
  verb->callback([flags, &exit_code] { exit_code = run(*flags); });
}

}  // namespace tandem::cli
