// HTTP requests, several at once in the caller's thread. http.cpp is the only file that knows libcurl.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace tandem::weights {

// The head of the answer at hand: of the last one, where redirects came before it.
struct HttpHead {
  int status = 0;
  std::map<std::string, std::string> fields;  // names in lower case

  std::string field(const std::string& name) const;  // empty where there is none
};

enum class HttpFailure {
  none,            // an answer came, of whatever status
  cannot_resolve,  // no address for the host's name
  cannot_connect,
  tls,        // no handshake
  untrusted,  // the server's certificate is not signed by anyone trusted, or for another host
  cut,        // the connection ended or fell silent
  refused,    // on_body refused the bytes
  other,      // too many redirects, one to another protocol
};

struct HttpResult {
  HttpHead head;
  HttpFailure failure = HttpFailure::none;
  std::string detail;  // libcurl's words for a failure
  std::string host;    // that answered, or should have: HOST or HOST:PORT
  std::optional<std::chrono::seconds> retry_after;
};

struct HttpRequest {
  std::string url;
  bool head_only = false;    // HEAD; a redirect is the answer
  std::uint64_t offset = 0;  // ask for the bytes from here on
  // Bytes of an answer of status 2xx; false ends the transfer. May throw: poll() passes it on.
  std::function<bool(const HttpHead&, std::string_view)> on_body;
  std::function<void(const HttpResult&)> on_end;
};

struct HttpOptions {
  std::string token;    // Authorization: Bearer; for the hosts of the requests, not for those redirected to
  std::string ca_file;  // certificates to trust in place of the system's; empty: the system's
};

// The scheme, host and port of a URL.
std::string host_of(const std::string& url);

class HttpClient {
 public:
  explicit HttpClient(HttpOptions options);
  ~HttpClient();  // drops what is under way
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  void start(HttpRequest request);
  // Moves all transfers on, waiting for one of them to move for at most `timeout`; the callbacks run in it.
  void poll(std::chrono::milliseconds timeout);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem::weights
