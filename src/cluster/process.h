// A child process whose stdin and stdout are pipes to us. Its stderr is ours.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace tandem::cluster {

class ChildProcess {
 public:
  // Starts argv[0] (looked up on PATH) in a process group of its own, so that the terminal's Ctrl-C is ours
  // alone. Both pipe ends here are non-blocking and closed on exec. Throws ClusterError where it cannot be
  // started.
  explicit ChildProcess(const std::vector<std::string>& argv);
  // Closes the pipes and kills what still runs.
  ~ChildProcess();
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ChildProcess& operator=(ChildProcess&&) = delete;

  pid_t pid() const { return pid_; }
  int input() const { return input_; }    // its stdin, for us to write
  int output() const { return output_; }  // its stdout, for us to read
  void close_input();

  // How it ended ("was killed by signal 9 (Killed)", "exited with code 2"), once it has; waits at most
  // `timeout`.
  std::optional<std::string> wait(std::chrono::milliseconds timeout);

 private:
  pid_t pid_ = -1;
  int input_ = -1;
  int output_ = -1;
  std::optional<std::string> ending_;
};

}  // namespace tandem::cluster
