#include "server/http.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/limits.h"
#include "base/log.h"

namespace tandem::server {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr auto with_error = asio::experimental::as_tuple(asio::use_awaitable);

// The client is gone in the middle of an answer; ends the connection.
struct ConnectionLost {};

}  // namespace

std::string HttpError::body() const {
  using nlohmann::json;
  const json error{{"message", what()},
                   {"type", status_ >= 500 ? "server_error" : "invalid_request_error"},
                   {"param", param_.empty() ? json(nullptr) : json(param_)},
                   {"code", code_.empty() ? json(nullptr) : json(code_)}};
  return json{{"error", error}}.dump(-1, ' ', false, json::error_handler_t::replace);
}

struct Exchange::Impl {
  beast::tcp_stream& stream;
  http::request<http::string_body> request;
  std::string method, path;
  bool is_head = false;
  bool keep_alive = false;
  int status = 0;  // 0: nothing sent yet

  template <typename Body>
  http::response<Body> response(int code) const {
    http::response<Body> result(static_cast<http::status>(code), request.version());
    result.set(http::field::server, "tandem");
    result.keep_alive(keep_alive);
    return result;
  }

  asio::awaitable<void> write_all(auto operation) {
    stream.expires_after(limits::http_write);
    const auto [error, bytes] = co_await std::move(operation);
    if (error) throw ConnectionLost{};
  }
};

const std::string& Exchange::method() const { return impl_.method; }
const std::string& Exchange::path() const { return impl_.path; }
const std::string& Exchange::body() const { return impl_.request.body(); }
asio::any_io_executor Exchange::executor() const { return impl_.stream.get_executor(); }
bool Exchange::begun() const { return impl_.status != 0; }

asio::awaitable<void> Exchange::answer(int status, std::string content_type, std::string body) {
  auto response = impl_.response<http::string_body>(status);
  response.set(http::field::content_type, content_type);
  if (status == 405 || status == 204) response.set(http::field::allow, "GET, POST");
  if (status == 503) response.set(http::field::retry_after, "5");
  response.body() = std::move(body);
  response.prepare_payload();
  if (impl_.is_head) response.body().clear();
  impl_.status = status;
  http::response_serializer<http::string_body> serializer(response);
  co_await impl_.write_all(http::async_write(impl_.stream, serializer, with_error));
}

asio::awaitable<void> Exchange::begin_events() {
  auto response = impl_.response<http::empty_body>(200);
  response.set(http::field::content_type, "text/event-stream");
  response.set(http::field::cache_control, "no-cache");
  if (impl_.request.version() >= 11) {
    response.chunked(true);
  } else {  // ends with the connection
    impl_.keep_alive = false;
    response.keep_alive(false);
  }
  impl_.status = 200;
  http::response_serializer<http::empty_body> serializer(response);
  co_await impl_.write_all(http::async_write_header(impl_.stream, serializer, with_error));
}

asio::awaitable<void> Exchange::send_event(const std::string& data) {
  const std::string event = "data: " + data + "\n\n";
  if (impl_.request.version() >= 11) {
    co_await impl_.write_all(
        asio::async_write(impl_.stream, http::make_chunk(asio::buffer(event)), with_error));
  } else {
    co_await impl_.write_all(asio::async_write(impl_.stream, asio::buffer(event), with_error));
  }
}

asio::awaitable<void> Exchange::end_events() {
  if (impl_.request.version() < 11) co_return;
  co_await impl_.write_all(asio::async_write(impl_.stream, http::make_chunk_last(), with_error));
}

bool Exchange::client_is_gone() const {
  char byte = 0;
  const auto got = ::recv(impl_.stream.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

namespace {

// Reads the next request; nothing where the connection is to end. What cannot be read becomes an HttpError.
asio::awaitable<std::optional<http::request<http::string_body>>> read_request(beast::tcp_stream& stream,
                                                                              beast::flat_buffer& buffer) {
  http::request_parser<http::string_body> parser;
  parser.header_limit(limits::http_header_bytes);
  parser.body_limit(limits::http_body_bytes);
  const auto refuse = [](error_code error) {
    if (error == http::error::header_limit) throw HttpError(431, "the request's headers are too long");
    if (error == http::error::body_limit) {
      throw HttpError(413,
                      fmt::format("the request's body is longer than {} bytes", limits::http_body_bytes));
    }
    const bool malformed = error.category() == make_error_code(http::error::bad_method).category() &&
                           error != http::error::end_of_stream && error != http::error::partial_message;
    if (malformed) throw HttpError(400, fmt::format("malformed HTTP: {}", error.message()));
  };
  stream.expires_after(limits::http_idle);
  const auto [header_error, header_bytes] =
      co_await http::async_read_header(stream, buffer, parser, with_error);
  if (header_error) {
    refuse(header_error);
    co_return std::nullopt;
  }
  stream.expires_after(limits::http_read);
  if (beast::iequals(parser.get()[http::field::expect], "100-continue")) {
    http::response<http::empty_body> go_on(http::status::continue_, 11);
    http::response_serializer<http::empty_body> serializer(go_on);
    co_await http::async_write(stream, serializer, with_error);
  }
  const auto [body_error, body_bytes] = co_await http::async_read(stream, buffer, parser, with_error);
  if (body_error) {
    refuse(body_error);
    co_return std::nullopt;
  }
  co_return parser.release();
}

// Runs the handler and answers what it throws.
asio::awaitable<void> handle(Exchange::Impl& impl, const Handler& handler) {
  Exchange exchange(impl);
  std::optional<HttpError> refusal;
  try {
    co_await handler(exchange);
  } catch (const HttpError& error) {
    refusal = error;
  } catch (const InputError& error) {
    refusal = HttpError(400, error.what(), error.param());
  } catch (const ClusterError& error) {
    refusal = HttpError(503, error.what());
  } catch (const std::exception& error) {
    log::error("{} {}: {}", impl.method, impl.path, error.what());
    refusal = HttpError(500, "an unexpected error; the server's log says more");
  }
  if (!refusal) co_return;
  if (exchange.begun()) {  // too late for a status: an event says it
    co_await exchange.send_event(refusal->body());
    impl.keep_alive = false;
  } else {
    co_await exchange.answer(refusal->status(), "application/json", refusal->body());
  }
}

asio::awaitable<void> serve_connection(tcp::socket socket, Handler handler,
                                       [[maybe_unused]] std::shared_ptr<int> counted) {
  beast::tcp_stream stream(std::move(socket));
  beast::flat_buffer buffer;
  bool open = true;
  bool refused = false;  // a request that was not read to its end
  try {
    while (open) {
      std::optional<http::request<http::string_body>> request;
      std::optional<HttpError> refusal;
      try {
        request = co_await read_request(stream, buffer);
      } catch (const HttpError& error) {
        refusal = error;
      }
      if (!request && !refusal) break;
      Exchange::Impl impl{stream, request ? std::move(*request) : http::request<http::string_body>()};
      if (refusal) {
        refused = true;
        co_await Exchange(impl).answer(refusal->status(), "application/json", refusal->body());
        break;
      }
      impl.is_head = impl.request.method() == http::verb::head;
      impl.method = impl.is_head ? "GET" : std::string(impl.request.method_string());
      impl.path = impl.request.target().substr(0, impl.request.target().find('?'));
      impl.keep_alive = impl.request.keep_alive();
      const auto begin = std::chrono::steady_clock::now();
      co_await handle(impl, handler);
      log::info("{} {} {} {:.3f} s", impl.method, impl.path, impl.status,
                std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      open = impl.keep_alive;
    }
  } catch (const ConnectionLost&) {
  }
  error_code ignored;
  stream.socket().shutdown(tcp::socket::shutdown_send, ignored);
  if (!refused) co_return;
  // Closing with unread bytes resets the connection, and the client loses the answer: take them in first.
  stream.expires_after(limits::http_linger);
  for (error_code ended; !ended;) {
    buffer.clear();
    const auto [error, bytes] = co_await stream.async_read_some(buffer.prepare(1 << 16), with_error);
    ended = error;
  }
}

asio::awaitable<void> accept_connections(std::shared_ptr<tcp::acceptor> acceptor, Handler handler) {
  // One token for each connection; its count is the number of connections.
  const auto connections = std::make_shared<int>();
  while (true) {
    auto [error, socket] = co_await acceptor->async_accept(with_error);
    if (error == asio::error::operation_aborted) co_return;
    if (error) {  // out of descriptors, say: the others go on
      log::warning("cannot accept a connection: {}", error.message());
      asio::steady_timer pause(acceptor->get_executor(), limits::http_accept_pause);
      co_await pause.async_wait(with_error);
      continue;
    }
    if (static_cast<std::size_t>(connections.use_count()) > limits::http_connections) continue;  // closes it
    asio::co_spawn(acceptor->get_executor(), serve_connection(std::move(socket), handler, connections),
                   asio::detached);
  }
}

void check(error_code error, const std::string& host, std::uint16_t port) {
  if (!error) return;
  const std::string why = error == asio::error::address_in_use ? "it is in use" : error.message();
  throw InputError(
      fmt::format("cannot listen on {} port {}: {}; --host and --port name another", host, port, why));
}

}  // namespace

Acceptor bind(asio::io_context& context, const std::string& host, std::uint16_t port) {
  error_code error;
  tcp::resolver resolver(context);
  const auto found = resolver.resolve(host, std::to_string(port), tcp::resolver::passive, error);
  if (!error && found.empty()) error = asio::error::host_not_found;
  check(error, host, port);
  const tcp::endpoint endpoint = found.begin()->endpoint();
  auto acceptor = std::make_shared<tcp::acceptor>(context);
  acceptor->open(endpoint.protocol(), error);
  if (!error) acceptor->set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor->bind(endpoint, error);
  check(error, host, port);
  return acceptor;
}

void listen(const Acceptor& acceptor, Handler handler) {
  const auto endpoint = acceptor->local_endpoint();
  error_code error;
  acceptor->listen(asio::socket_base::max_listen_connections, error);
  check(error, endpoint.address().to_string(), endpoint.port());
  asio::co_spawn(acceptor->get_executor(), accept_connections(acceptor, std::move(handler)), asio::detached);
}

}  // namespace tandem::server
