#include "server/completions.h"

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/experimental/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <deque>
#include <optional>

#include "base/error.h"
#include "base/limits.h"
#include "text/answer_text.h"

namespace tandem::server {
namespace {

namespace asio = boost::asio;

struct Lost {
  std::string message;
};
using Item = std::variant<engine::Event, Lost>;

// What the conductor's thread has said about one request, for the coroutine that waits. Everything but post()
// runs on the context's thread.
class Inbox : public std::enable_shared_from_this<Inbox> {
 public:
  explicit Inbox(std::shared_ptr<asio::io_context> context)
      : context_(std::move(context)), arrival_(*context_) {}

  // From any thread.
  void post(Item item) {
    asio::post(*context_, [self = shared_from_this(), item = std::move(item)]() mutable {
      self->items_.push_back(std::move(item));
      self->arrival_.cancel();
    });
  }

  // The next event, nothing where the client is gone. HttpError where the request is refused or the group
  // lost.
  asio::awaitable<std::optional<engine::Event>> next(const Exchange& exchange) {
    while (items_.empty()) {
      if (exchange.client_is_gone()) co_return std::nullopt;
      arrival_.expires_after(limits::http_client_check);
      co_await arrival_.async_wait(asio::experimental::as_tuple(asio::use_awaitable));
    }
    Item item = std::move(items_.front());
    items_.pop_front();
    if (const auto* lost = std::get_if<Lost>(&item)) throw HttpError(503, lost->message);
    auto event = std::get<engine::Event>(std::move(item));
    if (const auto* refused = std::get_if<engine::RefusedEvent>(&event)) {
      throw HttpError(400, refused->message, refused->param);
    }
    co_return event;
  }

 private:
  std::shared_ptr<asio::io_context> context_;
  asio::steady_timer arrival_;
  std::deque<Item> items_;
};

// Cancels the request unless it has ended.
class RequestGuard {
 public:
  RequestGuard(cluster::Conductor& conductor, std::uint64_t id) : conductor_(conductor), id_(id) {}
  ~RequestGuard() { conductor_.cancel(id_); }
  RequestGuard(const RequestGuard&) = delete;
  RequestGuard& operator=(const RequestGuard&) = delete;

 private:
  cluster::Conductor& conductor_;
  std::uint64_t id_;
};

engine::GenerateRequest to_engine(const CompletionRequest& request, const ServedModel& model) {
  engine::GenerateRequest result;
  if (const auto* messages = std::get_if<nlohmann::ordered_json>(&request.prompt)) {
    result.prompt = model.chat_prompt(*messages, request.template_variables);
  } else if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    result.prompt = model.tokenizer.encode(*text, /*add_special=*/true);
  } else {
    result.prompt = std::get<std::vector<int>>(request.prompt);
  }
  result.max_tokens = request.max_tokens;
  if (!request.ignore_end) result.end_ids = model.config.end_ids;
  result.sampling = request.sampling;
  return result;
}

// The engine refuses such a prompt too, without OpenAI's code for it.
void check_length(const engine::GenerateRequest& generate, const CompletionRequest& request, int context) {
  const auto tokens = static_cast<int>(generate.prompt.size());
  if (tokens < context) return;
  throw HttpError(400,
                  fmt::format("the prompt has {} tokens, but the context holds {} for prompt and answer "
                              "together: shorten the prompt",
                              tokens, context),
                  request.is_chat() ? "messages" : "prompt", "context_length_exceeded");
}

// The answer's pieces as they are sent: one body, or a stream of events begun with the first piece.
class AnswerWriter {
 public:
  AnswerWriter(Exchange& exchange, const CompletionRequest& request, const std::string& model)
      : exchange_(exchange), request_(request), head_(make_answer_head(request, model)) {}

  asio::awaitable<void> text(const std::string& piece) {
    if (request_.stream) {
      co_await begin();
      if (!piece.empty()) co_await exchange_.send_event(text_chunk(head_, piece));
    } else {
      whole_ += piece;
    }
  }

  asio::awaitable<void> end(const engine::DoneEvent& done, bool stop_string) {
    if (!request_.stream) {
      co_await exchange_.answer(200, "application/json", answer_json(head_, whole_, done, stop_string));
      co_return;
    }
    co_await begin();
    co_await exchange_.send_event(last_chunk(head_, finish_reason(done, stop_string)));
    if (request_.include_usage) co_await exchange_.send_event(usage_chunk(head_, done));
    co_await exchange_.send_event("[DONE]");
    co_await exchange_.end_events();
  }

 private:
  asio::awaitable<void> begin() {
    if (exchange_.begun()) co_return;
    co_await exchange_.begin_events();
    if (head_.chat) co_await exchange_.send_event(first_chunk(head_));
  }

  Exchange& exchange_;
  const CompletionRequest& request_;
  AnswerHead head_;
  std::string whole_;
};

}  // namespace

asio::awaitable<void> complete(Exchange& exchange, CompletionRequest request, cluster::Conductor& conductor,
                               const ServedModel& model, std::shared_ptr<asio::io_context> context,
                               asio::thread_pool& tokenizing) {
  // A long text takes seconds to become tokens, in which others are served.
  auto generate = co_await asio::co_spawn(
      tokenizing, [&]() -> asio::awaitable<engine::GenerateRequest> { co_return to_engine(request, model); },
      asio::use_awaitable);
  check_length(generate, request, conductor.capacity().context);
  const auto inbox = std::make_shared<Inbox>(std::move(context));
  const auto id = conductor.submit(
      std::move(generate), [inbox](const engine::Event& event) { inbox->post(event); },
      [inbox](const std::string& message) { inbox->post(Lost{message}); });
  const RequestGuard guard(conductor, id);
  AnswerWriter writer(exchange, request, model.name);
  text::AnswerText text(model.tokenizer, request.stops);
  while (const auto event = co_await inbox->next(exchange)) {
    if (const auto* token = std::get_if<engine::TokenEvent>(&*event)) {
      co_await writer.text(text.push(token->token));
      // A stop string ends the answer: the DoneEvent that follows the cancelling has its counts.
      if (text.stopped()) conductor.cancel(id);
    } else if (const auto* done = std::get_if<engine::DoneEvent>(&*event)) {
      co_await writer.text(text.finish());
      co_await writer.end(*done, text.stopped());
      co_return;
    }
  }
}

}  // namespace tandem::server
