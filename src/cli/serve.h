// Serving a started model over HTTP, as `serve` and `demo --serve` do.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>

#include "cluster/conductor.h"
#include "server/served_model.h"
#include "server/server.h"

namespace tandem::cli {

void add_server_flags(CLI::App& verb, server::ServerOptions& options);

// Starts the model once the address is taken, and serves it until Ctrl-C; returns the exit code.
int serve_model(const server::ServerOptions& options, const server::ServedModel& model,
                const std::function<std::unique_ptr<cluster::Conductor>()>& start);

}  // namespace tandem::cli
