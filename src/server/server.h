// The HTTP server of one model.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cluster/conductor.h"
#include "server/served_model.h"

namespace tandem::server {

struct ServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8080;  // 0: a free one
};

// Serves until SIGINT or SIGTERM, or until the group is lost. Returns the exit code: 0 on a signal, 1 on a
// loss. `on_listening` is called with the port once it is bound. InputError where the address cannot be
// bound.
int serve(cluster::Conductor& conductor, const ServedModel& model, const ServerOptions& options,
          const std::function<void(std::uint16_t port)>& on_listening);

}  // namespace tandem::server
