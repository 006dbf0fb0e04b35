// Serving a started model over HTTP, as `serve` and `demo --serve` do.
#pragma once

#include <CLI/CLI.hpp>

#include "cluster/conductor.h"
#include "server/served_model.h"
#include "server/server.h"

namespace tandem::cli {

void add_server_flags(CLI::App& verb, server::ServerOptions& options);

// Until Ctrl-C; returns the exit code.
int serve_model(cluster::Conductor& conductor, const server::ServedModel& model,
                const server::ServerOptions& options);

}  // namespace tandem::cli
