#include "cli/serve.h"

#include <fmt/format.h>

#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/verbs.h"

namespace tandem::cli {
namespace {

struct ServeFlags {
  std::string model;
  server::ServerOptions server;
  ClusterFlags cluster;
};

int run(const ServeFlags& flags) {
  const auto folder = find_model(flags.model);
  const auto model = server::load_served_model(folder, short_name(flags.model));
  const auto plan = make_plan(flags.cluster, model.config);
  return serve_model(flags.server, model, [&] {
    auto conductor = start(folder, plan, flags.cluster);
    note("{}", describe_ranks(*conductor));
    return conductor;
  });
}

}  // namespace

void add_server_flags(CLI::App& verb, server::ServerOptions& options) {
  verb.add_option("--host", options.host, "Address to listen on; 0.0.0.0 lets other machines in")
      ->capture_default_str();
  verb.add_option("--port", options.port, "Port; 0 takes a free one")->capture_default_str();
}

int serve_model(const server::ServerOptions& options, const server::ServedModel& model,
                const std::function<std::unique_ptr<cluster::Conductor>()>& start) {
  return server::serve(options, model, start, [&](std::uint16_t port) {
    const bool v6 = options.host.find(':') != std::string::npos;
    note("listening on http://{}:{}\n", v6 ? "[" + options.host + "]" : options.host, port);
  });
}

void add_serve(CLI::App& program, int& exit_code) {
  auto* verb = program.add_subcommand("serve", "Serve a model over HTTP with OpenAI's API");
  auto flags = std::make_shared<ServeFlags>();
  verb->add_option("MODEL", flags->model, "A folder, or a name in the local Hugging Face cache (org/model)")
      ->required();
  add_server_flags(*verb, flags->server);
  add_request_flags(*verb, flags->cluster);
  add_cluster_flags(*verb, flags->cluster);
  verb->callback([flags, &exit_code] { exit_code = run(*flags); });
}

}  // namespace tandem::cli
