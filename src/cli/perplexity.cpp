#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "cli/answer.h"
#include "cli/ids_input.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "text/tokenizer.h"

namespace tandem::cli {
namespace {

struct PerplexityFlags {
  std::string model;
  std::string ids_file;
  std::string text_file;
  int window = 0;
  ClusterFlags cluster;
};

// A model sees `window` tokens at a time: windows follow each other without overlap, and each one's first
// token is not scored.
void run(const PerplexityFlags& flags) {
  if (flags.ids_file.empty() == flags.text_file.empty())
    throw InputError("give --ids-file or --text-file, one of the two");
  const auto folder = find_model(flags.model);
  const auto config = models::load_config(folder);
  const auto ids = flags.ids_file.empty()
                       ? text::Tokenizer(folder).encode(read_file(flags.text_file), /*add_special=*/true)
                       : read_ids(flags.ids_file);
  if (ids.size() < 2) throw InputError(fmt::format("{} token is too few: perplexity needs two", ids.size()));
  if (flags.window > config.context) {
    throw InputError(
        fmt::format("--window {} is longer than the model's context of {}", flags.window, config.context));
  }
  const int context = flags.cluster.context.tokens > 0 ? flags.cluster.context.tokens : config.context;
  const std::size_t window = static_cast<std::size_t>(flags.window > 0 ? flags.window : context);
  const auto conductor = start(folder, make_plan(flags.cluster, config), flags.cluster);
  double sum_nll = 0;
  int tokens = 0;
  for (std::size_t first = 0; first + 1 < ids.size(); first += window) {
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(first);
    const auto end = ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), first + window));
    const auto nll = score(*conductor, {.ids = {begin, end}, .nll = true}, [](const auto&) {});
    sum_nll += nll.sum_nll;
    tokens += nll.tokens;
  }
  const double mean_nll = sum_nll / tokens;
  const nlohmann::json result{{"mean_nll", mean_nll}, {"perplexity", std::exp(mean_nll)}, {"tokens", tokens}};
  print_result(result.dump() + '\n');
}

}  // namespace

void add_perplexity(CLI::App& program) {
  auto* verb = program.add_subcommand("perplexity", "Mean negative log-likelihood (nats) of a text, as JSON");
  auto flags = std::make_shared<PerplexityFlags>();
  verb->add_option("MODEL", flags->model, "A folder, or a name in the local Hugging Face cache")->required();
  verb->add_option("--ids-file", flags->ids_file, "A file of token ids, separated by commas or white space");
  verb->add_option("--text-file", flags->text_file, "A text file, UTF-8");
  verb->add_option("--window", flags->window, "Tokens that the model sees at a time [its context]")
      ->check(CLI::Range(2, 1 << 24));
  flags->cluster.activations = "float32";  // this verb measures the weights
  add_request_flags(*verb, flags->cluster);
  add_cluster_flags(*verb, flags->cluster);
  verb->callback([flags] { run(*flags); });
}

}  // namespace tandem::cli
