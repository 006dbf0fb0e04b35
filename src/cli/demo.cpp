#include <fmt/format.h>

#include "cli/answer.h"
#include "cli/chat.h"
#include "cli/demo_model.h"
#include "cli/environment.h"
#include "cli/serve.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/verbs.h"

namespace tandem::cli {
namespace {

struct DemoFlags {
  bool serve = false;
  server::ServerOptions server;
  ClusterFlags cluster{.default_ranks = 2};
};

constexpr const char* questions[] = {"What is 27 + 15?", "What is the capital of France?",
                                     "What is 345 + 678?"};

void ask(cluster::Conductor& conductor, const server::ServedModel& model, const char* question) {
  const nlohmann::ordered_json messages{{{"role", "user"}, {"content", question}}};
  engine::Sampling sampling;
  sampling.temperature = 0;
  engine::GenerateRequest request{0, model.chat_prompt(messages), 0, model.config.end_ids, sampling};
  print_result(fmt::format("\n> {}\n", question));
  print_answer(conductor, model.tokenizer, std::move(request));
}

int run(const DemoFlags& flags) {
  const auto folder = unpack_demo_model(cache_folder());
  const auto model = server::load_served_model(folder, "demo-model");
  const auto plan = make_plan(flags.cluster, model.config);
  note("{}: {}, {}, split over {}\n{}", bold(model.name), model.config.family,
       counted(model.config.layers, "layer"), counted(plan.world_size(), "rank"),
       describe_plan(plan, model.config));
  const auto start_model = [&] { return start(folder, plan, flags.cluster); };
  if (flags.serve) return serve_model(flags.server, model, start_model);
  const auto conductor = start_model();
  for (const char* question : questions) ask(*conductor, model, question);
  note("\n{}", describe_ranks(*conductor));
  if (stdin_is_terminal()) {
    engine::Sampling sampling;
    sampling.temperature = 0;
    chat(*conductor, model, {"", 0, sampling});
  }
  return 0;
}

}  // namespace

void add_demo(CLI::App& program, int& exit_code) {
  auto* verb = program.add_subcommand("demo", "Run the model that the program carries on two local ranks");
  auto flags = std::make_shared<DemoFlags>();
  verb->add_flag("--serve", flags->serve, "Serve it over HTTP instead");
  add_server_flags(*verb, flags->server);
  add_request_flags(*verb, flags->cluster);
  add_cluster_flags(*verb, flags->cluster);
  verb->callback([flags, &exit_code] { exit_code = run(*flags); });
}

}  // namespace tandem::cli
