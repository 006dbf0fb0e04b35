#include <fmt/format.h>

#include <iostream>

#include "base/error.h"
#include "cli/cached_models.h"
#include "cli/environment.h"
#include "cli/terminal.h"
#include "cli/verbs.h"

namespace tandem::cli {
namespace {

struct RmFlags {
  std::string model;
  bool yes = false;
};

bool agreed(const weights::Removal& removal) {
  note("{}remove {}, which frees {}? [y/N] ", models_table(removal.models),
       removal.models.size() == 1 ? "it" : "all of them", format_bytes(removal.bytes));
  std::fflush(stderr);
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

void run(const RmFlags& flags) {
  const auto removal = weights::plan_removal(hub_cache(), weights::parse_model_name(flags.model));
  if (!flags.yes && !stdin_is_terminal()) {
    throw InputError("nobody is there to ask on stdin: give --yes to remove it without a question");
  }
  if (!flags.yes && !agreed(removal)) {
    note("nothing is removed\n");
    return;
  }
  weights::remove(removal);
  note("removed {}, {} freed\n", flags.model, format_bytes(removal.bytes));
}

}  // namespace

void add_rm(CLI::App& program) {
  auto* verb = program.add_subcommand("rm", "Remove a model from the local Hugging Face cache");
  auto flags = std::make_shared<RmFlags>();
  verb->add_option("NAME", flags->model,
                   "ORG/NAME: all of it; ORG/NAME@REVISION: that revision and what no other one uses")
      ->required();
  verb->add_flag("-y,--yes", flags->yes, "Do not ask");
  verb->callback([flags] { run(*flags); });
}

}  // namespace tandem::cli
