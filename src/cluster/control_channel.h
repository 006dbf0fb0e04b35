// A worker's pipe to its conductor.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/bounded_queue.h"
#include "base/error.h"
#include "base/limits.h"

namespace tandem::cluster {

// The two directions of the pipe. A thread reads lines into a queue; end-of-file, the conductor's death, ends
// the process at once, whatever the model is doing; and it says now and then that the process is alive. A
// conductor that does not read holds nothing up.
class ControlChannel {
 public:
  // Takes stdin and stdout: what libraries print goes to stderr from now on.
  ControlChannel();

  // Never waits for the conductor: what the pipe does not take at once is written by a thread, in order.
  void send(const nlohmann::json& object);
  // Whether all that was sent is in the pipe, after `timeout` at most.
  bool written(std::chrono::milliseconds timeout);
  std::optional<nlohmann::json> receive(std::chrono::milliseconds timeout) { return inbox_.pop(timeout); }
  std::optional<nlohmann::json> try_receive() { return inbox_.try_pop(); }

  // Waits for the message `name`.
  template <typename Message>
  Message expect(const char* name) {
    while (true) {
      const auto object = receive(limits::worker_pipe);
      if (!object) continue;
      if (!object->contains(name))
        throw ClusterError(fmt::format("expected \"{}\", got {}", name, object->dump()));
      return (*object)[name].template get<Message>();
    }
  }

 private:
  void read_lines();
  void write_lines();

  int output_;
  std::mutex sending_;  // slices may come in another thread, which tells of them
  std::condition_variable changed_;
  std::deque<std::string> outbox_;  // not in the pipe yet
  BoundedQueue<nlohmann::json> inbox_;
};

}  // namespace tandem::cluster
