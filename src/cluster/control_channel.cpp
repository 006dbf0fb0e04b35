#include "cluster/control_channel.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <thread>

#include "base/json_lines.h"
#include "base/limits.h"
#include "cluster/protocol.h"

namespace tandem::cluster {

using nlohmann::json;

ControlChannel::ControlChannel() : inbox_(limits::worker_inbox) {
  // The real stdout moves away, so that no library's print can break the protocol.
  output_ = ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
  ::dup2(STDERR_FILENO, STDOUT_FILENO);
  std::thread([this] { read_lines(); }).detach();
}

void ControlChannel::send(const json& object) const {
  const std::lock_guard lock(sending_);
  if (!write_all(output_, to_json_line(object))) ::_exit(0);
}

void ControlChannel::read_lines() {
  JsonLineReader lines;
  std::array<char, 1 << 16> bytes;
  while (true) {
    const auto got = ::read(STDIN_FILENO, bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) ::_exit(0);
    try {
      lines.feed({bytes.data(), static_cast<std::size_t>(got)});
      while (auto object = lines.next()) {
        if (!inbox_.try_push(std::move(*object)))
          throw ClusterError("more messages than the worker can hold");
      }
    } catch (const std::exception& error) {
      send({{"failed", Failed{"internal", error.what()}}});
      ::_exit(1);
    }
  }
}

}  // namespace tandem::cluster
