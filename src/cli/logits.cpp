#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/answer.h"
#include "cli/ids_input.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/verbs.h"

namespace tandem::cli {
namespace {

struct LogitsFlags {
  std::string model;
  std::string ids;
  std::string ids_file;
  std::vector<int> positions;
  ClusterFlags cluster;
};

void run(const LogitsFlags& flags) {
  if (flags.ids.empty() == flags.ids_file.empty())
    throw InputError("give --ids or --ids-file, one of the two");
  engine::ScoreRequest request;
  request.ids = flags.ids.empty() ? read_ids(flags.ids_file) : parse_ids(flags.ids, "--ids");
  request.positions = flags.positions;
  const auto folder = find_model(flags.model);
  const auto plan = make_plan(flags.cluster, models::load_config(folder));
  const auto conductor = start(folder, plan, flags.cluster);
  score(*conductor, std::move(request), [](const engine::LogitsEvent& event) {
    print_result(nlohmann::json{{"position", event.position}, {"logits", event.logits}}.dump() + '\n');
  });
}

}  // namespace

void add_logits(CLI::App& program) {
  auto* verb =
      program.add_subcommand("logits", "Print the logits after given token ids, one JSON line a position");
  auto flags = std::make_shared<LogitsFlags>();
  verb->add_option("MODEL", flags->model,
                   "A folder (no tokenizer needed), or a name in the local Hugging Face cache")
      ->required();
  verb->add_option("--ids", flags->ids, "Token ids: 5,6,7");
  verb->add_option("--ids-file", flags->ids_file, "A file of token ids, separated by commas or white space");
  verb->add_option("--positions", flags->positions, "Only these positions: 0,2 [all]")->delimiter(',');
  flags->cluster.activations = "float32";  // this verb measures the weights
  add_request_flags(*verb, flags->cluster);
  add_cluster_flags(*verb, flags->cluster);
  verb->callback([flags] { run(*flags); });
}

}  // namespace tandem::cli
