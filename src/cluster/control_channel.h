// A worker's pipe to its conductor.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/bounded_queue.h"
#include "base/error.h"

namespace tandem::cluster {

// The two directions of the pipe. A thread reads lines into a queue; end-of-file, the conductor's death, ends
// the process at once, whatever the model is doing.
class ControlChannel {
 public:
  // Takes stdin and stdout: what libraries print goes to stderr from now on.
  ControlChannel();

  void send(const nlohmann::json& object) const;
  std::optional<nlohmann::json> receive(std::chrono::milliseconds timeout) { return inbox_.pop(timeout); }
  std::optional<nlohmann::json> try_receive() { return inbox_.try_pop(); }

  // Waits for the message `name`.
  template <typename Message>
  Message expect(const char* name) {
    while (true) {
      const auto object = receive(std::chrono::hours(24));
      if (!object) continue;
      if (!object->contains(name))
        throw ClusterError(fmt::format("expected \"{}\", got {}", name, object->dump()));
      return (*object)[name].template get<Message>();
    }
  }

 private:
  void read_lines();

  int output_;
  mutable std::mutex sending_;  // slices may come in another thread, which tells of them
  BoundedQueue<nlohmann::json> inbox_;
};

}  // namespace tandem::cluster
