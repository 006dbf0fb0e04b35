#include <fmt/format.h>

#include "cli/cached_models.h"
#include "cli/environment.h"
#include "cli/terminal.h"
#include "cli/verbs.h"

namespace tandem::cli {
namespace {

void run(bool json) {
  const auto models = weights::list_models(hub_cache());
  if (json) {
    print_result(models_json(models).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n');
  } else if (models.empty()) {
    note("no models in {}; tandem pull ORG/NAME downloads one\n", hub_cache().string());
  } else {
    print_result(models_table(models));
  }
}

}  // namespace

void add_list(CLI::App& program) {
  auto* verb = program.add_subcommand("list", "List the models in the local Hugging Face cache");
  auto json = std::make_shared<bool>(false);
  verb->add_flag("--json", *json, "A JSON list with commit, revisions, bytes");
  verb->callback([json] { run(*json); });
}

}  // namespace tandem::cli
