#include "server/server.h"

#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <csignal>
#include <memory>

#include "base/limits.h"
#include "server/completions.h"
#include "server/http.h"
#include "server/openai.h"

namespace tandem::server {
namespace {

namespace asio = boost::asio;

constexpr const char* json_type = "application/json";

struct Service {
  cluster::Conductor& conductor;
  const ServedModel& model;
  std::shared_ptr<asio::io_context> context;
  std::shared_ptr<asio::thread_pool> tokenizing;
  std::int64_t created = 0;  // seconds since 1970
  std::size_t running = 0;   // requests, waiting ones included
  int exit_code = 0;
};

std::string health_json(const cluster::Conductor& conductor) {
  auto ranks = nlohmann::json::array();
  for (const auto& rank : conductor.ranks()) {
    ranks.push_back({{"rank", ranks.size()},
                     {"host", rank.host},
                     {"weight_bytes", rank.ready->weight_bytes},
                     {"cache_bytes", rank.status.cache_bytes},
                     {"resident_bytes", rank.status.resident_bytes}});
  }
  const auto& capacity = conductor.capacity();
  return nlohmann::json{{"status", "ok"},
                        {"context", capacity.context},
                        {"cache_tokens", capacity.cache_tokens},
                        {"cache_token_bytes", capacity.token_bytes},
                        {"ranks", ranks}}
      .dump();
}

asio::awaitable<void> complete_bounded(Service& service, Exchange& exchange, bool chat) {
  if (service.running >= limits::queued_requests)
    throw HttpError(503, "too many requests are waiting; try again later");
  struct Count {
    std::size_t& running;
    explicit Count(std::size_t& count) : running(count) { ++running; }
    ~Count() { --running; }
  } const count(service.running);
  const auto body = parse_body(exchange.body());
  const auto defaults = service.model.default_sampling(/*temperature=*/1);
  auto request = chat ? parse_chat_request(body, defaults) : parse_text_request(body, defaults);
  co_await complete(exchange, std::move(request), service.conductor, service.model, service.context,
                    *service.tokenizing);
}

asio::awaitable<void> route(Service& service, Exchange& exchange) {
  const std::string& path = exchange.path();
  if (exchange.method() == "OPTIONS") {
    co_await exchange.answer(204, json_type, "");
    co_return;
  }
  const auto require = [&](const char* method) {
    if (exchange.method() != method) throw HttpError(405, fmt::format("{} takes {} alone", path, method));
  };
  if (path == "/v1/chat/completions" || path == "/v1/completions") {
    require("POST");
    co_await complete_bounded(service, exchange, path == "/v1/chat/completions");
  } else if (path == "/v1/models" || path == "/v1/models/" + service.model.name) {
    require("GET");
    const auto list = models_json(service.model.name, service.created, service.conductor.capacity().context);
    // Not within co_await: g++ 12 frees such a conditional's temporary twice.
    const bool one = path != "/v1/models";
    const std::string body = one ? nlohmann::json::parse(list)["data"][0].dump() : list;
    co_await exchange.answer(200, json_type, body);
  } else if (path == "/health") {
    require("GET");
    co_await exchange.answer(200, json_type, health_json(service.conductor));
  } else {
    throw HttpError(
        404, fmt::format("there is no {} here; there are /v1/chat/completions, /v1/completions, /v1/models "
                         "and /health",
                         path));
  }
}

}  // namespace

int serve(const ServerOptions& options, const ServedModel& model,
          const std::function<std::unique_ptr<cluster::Conductor>()>& start,
          const std::function<void(std::uint16_t port)>& on_listening) {
  std::unique_ptr<cluster::Conductor> conductor;  // requests under way may use it until the context is gone
  const auto context = std::make_shared<asio::io_context>(1);
  const auto acceptor = bind(*context, options.host, options.port);
  conductor = start();
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto service =
      std::make_shared<Service>(Service{*conductor, model, context, std::make_shared<asio::thread_pool>(1),
                                        std::chrono::duration_cast<std::chrono::seconds>(now).count()});
  listen(acceptor, [service](Exchange& exchange) { return route(*service, exchange); });
  asio::signal_set signals(*context, SIGINT, SIGTERM);
  signals.async_wait([&](const auto& error, int) {
    if (!error) context->stop();
  });
  // On the conductor's thread, perhaps as this function returns: nothing of its stack is used.
  conductor->on_lost([context, service](const std::string& message) {
    asio::post(*context, [context, service, message] {
      std::fputs(fmt::format("tandem: {}\n", message).c_str(), stderr);
      service->exit_code = 1;
      // The answers under way get a moment to say so.
      const auto farewell = std::make_shared<asio::steady_timer>(*context, limits::http_farewell);
      farewell->async_wait([context, farewell](const auto&) { context->stop(); });
    });
  });
  on_listening(acceptor->local_endpoint().port());
  context->run();
  conductor->on_lost({});
  service->tokenizing->stop();
  service->tokenizing->join();
  return service->exit_code;
}

}  // namespace tandem::server
