// HTTP/1.1 over Boost.Beast: listener, connections, bounds, error answers. Knows nothing of OpenAI but the
// error object.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

namespace tandem::server {

// An error with its HTTP status.
class HttpError : public std::runtime_error {
 public:
  HttpError(int status, const std::string& message, std::string param = "", std::string code = "")
      : std::runtime_error(message), status_(status), param_(std::move(param)), code_(std::move(code)) {}

  int status() const { return status_; }
  // OpenAI's error object.
  std::string body() const;

 private:
  int status_;
  std::string param_;
  std::string code_;
};

// One request and the answer to it: at once by answer(), or as server-sent events (WHATWG HTML, section 9.2)
// by begin_events(), any number of send_event() and end_events(). A client that goes ends the connection's
// coroutine.
class Exchange {
 public:
  struct Impl;
  explicit Exchange(Impl& impl) : impl_(impl) {}

  const std::string& method() const;  // GET for HEAD too
  const std::string& path() const;    // without the query
  const std::string& body() const;
  boost::asio::any_io_executor executor() const;

  boost::asio::awaitable<void> answer(int status, std::string content_type, std::string body);
  boost::asio::awaitable<void> begin_events();
  boost::asio::awaitable<void> send_event(const std::string& data);
  boost::asio::awaitable<void> end_events();
  // A status has been sent.
  bool begun() const;
  // The client has closed its side.
  bool client_is_gone() const;

 private:
  Impl& impl_;
};

// May throw HttpError, InputError (400) and ClusterError (503).
using Handler = std::function<boost::asio::awaitable<void>(Exchange&)>;

using Acceptor = std::shared_ptr<boost::asio::ip::tcp::acceptor>;

// Takes the address, 0 being any free port; a connection is refused until listen(). InputError where it
// cannot be had.
Acceptor bind(boost::asio::io_context& context, const std::string& host, std::uint16_t port);

// Accepts connections on the acceptor's context. InputError where another program listens there by now.
void listen(const Acceptor& acceptor, Handler handler);

}  // namespace tandem::server
