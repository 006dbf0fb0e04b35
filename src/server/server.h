// The HTTP server of one model.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "cluster/conductor.h"
#include "server/served_model.h"

namespace tandem::server {

struct ServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8080;  // 0: a free one
};

// Takes the address, then starts the group, and serves until SIGINT or SIGTERM, or until the group is lost.
// Returns the exit code: 0 on a signal, 1 on a loss. `on_listening` is called with the port. InputError where
// the address cannot be had.
int serve(const ServerOptions& options, const ServedModel& model,
          const std::function<std::unique_ptr<cluster::Conductor>()>& start,
          const std::function<void(std::uint16_t port)>& on_listening);

}  // namespace tandem::server
