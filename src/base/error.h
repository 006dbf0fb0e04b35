// The errors a caller can act on. Our own bugs are assertions, not these.
#pragma once

#include <stdexcept>
#include <string>

namespace tandem {

// What the user gave is wrong: a file, an option, a field of a request. The message names what, which value
// and what to do. Exit code 2, HTTP 400.
class InputError : public std::runtime_error {
 public:
  // `param`: the field of a request that is wrong, empty where there is none.
  explicit InputError(const std::string& message, std::string param = "")
      : std::runtime_error(message), param_(std::move(param)) {}

  const std::string& param() const { return param_; }

 private:
  std::string param_;
};

// A rank or a link is lost, or a deadline passed; the message names the rank. Ends the group. Exit code 1,
// HTTP 503.
class ClusterError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A download failed by the network, the server or the bytes it sent; the message names the file. Exit code 1.
class DownloadError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace tandem
