#include "cli/answer.h"

#include <fmt/format.h>

#include <deque>
#include <memory>

#include "base/error.h"
#include "base/limits.h"
#include "cli/event_queue.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "text/answer_text.h"

namespace tandem::cli {
namespace {

// A submitted request's events, in order, for the thread that waits.
class EventStream {
 public:
  EventStream(cluster::Conductor& conductor, engine::Request request) : conductor_(conductor) {
    auto queue = queue_;
    id_ = conductor.submit(
        std::move(request), [queue](const engine::Event& event) { queue->push(event); },
        [queue](const std::string& message) { queue->push(Lost{message}); });
  }
  ~EventStream() { queue_->close(); }
  EventStream(const EventStream&) = delete;
  EventStream& operator=(const EventStream&) = delete;

  // The next event. The first Ctrl-C cancels the request; its DoneEvent follows.
  engine::Event next() {
    while (true) {
      if (InterruptGuard::interrupted() && !cancelled_) {
        conductor_.cancel(id_);
        cancelled_ = true;
      }
      auto item = queue_->pop(limits::interrupt_poll);
      if (!item) continue;
      if (const auto* lost = std::get_if<Lost>(&*item)) throw ClusterError(lost->message);
      auto event = std::get<engine::Event>(std::move(*item));
      if (const auto* refused = std::get_if<engine::RefusedEvent>(&event))
        throw InputError(refused->message, refused->param);
      return event;
    }
  }

  engine::DoneEvent wait_for_end(const std::function<void(int)>& on_token) {
    while (true) {
      const auto event = next();
      if (const auto* token = std::get_if<engine::TokenEvent>(&event)) on_token(token->token);
      if (const auto* done = std::get_if<engine::DoneEvent>(&event)) return *done;
    }
  }

 private:
  cluster::Conductor& conductor_;
  std::shared_ptr<EventQueue> queue_ = std::make_shared<EventQueue>();
  std::uint64_t id_ = 0;
  bool cancelled_ = false;
};

double rate(int tokens, double seconds) { return seconds > 0 ? tokens / seconds : 0; }

// "23 tokens, 41.2 tokens/s · prompt 14 tokens, 310 tokens/s"
std::string describe_speed(const Answer& answer) {
  const auto& done = answer.done;
  return fmt::format("{}, {:.1f} tokens/s · prompt {}, {:.0f} tokens/s{}",
                     counted(done.generated_tokens, "token"), answer.decode_tokens_per_s(),
                     counted(done.prompt_tokens, "token"), answer.prefill_tokens_per_s(),
                     done.reason == engine::FinishReason::length      ? " · stopped at the limit"
                     : done.reason == engine::FinishReason::cancelled ? " · stopped by Ctrl-C"
                                                                      : "");
}

}  // namespace

// The first token comes out of the prefill; the others take decode_s.
double Answer::decode_tokens_per_s() const { return rate(done.generated_tokens - 1, done.decode_s); }
double Answer::prefill_tokens_per_s() const { return rate(done.prompt_tokens, done.prefill_s); }

engine::DoneEvent generate_ids(cluster::Conductor& conductor, engine::GenerateRequest request,
                               const std::function<void(int)>& on_token) {
  EventStream events(conductor, std::move(request));
  return events.wait_for_end(on_token);
}

std::vector<engine::DoneEvent> generate_all(cluster::Conductor& conductor,
                                            std::vector<engine::GenerateRequest> requests) {
  std::deque<EventStream> streams;
  for (auto& request : requests) streams.emplace_back(conductor, std::move(request));
  std::vector<engine::DoneEvent> ends;
  for (auto& stream : streams) ends.push_back(stream.wait_for_end([](int) {}));
  return ends;
}

Answer generate(cluster::Conductor& conductor, const text::Tokenizer& tokenizer,
                engine::GenerateRequest request, const std::function<void(std::string_view)>& on_text) {
  const InterruptGuard guard;
  text::AnswerText text(tokenizer, {});
  Answer answer;
  const auto give = [&](const std::string& piece) {
    answer.text += piece;
    if (!piece.empty()) on_text(piece);
  };
  answer.done = generate_ids(conductor, std::move(request), [&](int token) {
    answer.ids.push_back(token);
    give(text.push(token));
  });
  give(text.finish());
  return answer;
}

Answer print_answer(cluster::Conductor& conductor, const text::Tokenizer& tokenizer,
                    engine::GenerateRequest request) {
  auto answer = generate(conductor, tokenizer, std::move(request), print_result);
  print_result("\n");
  note("{}\n", dim(describe_speed(answer)));
  return answer;
}

engine::NllEvent score(cluster::Conductor& conductor, engine::ScoreRequest request,
                       const std::function<void(const engine::LogitsEvent&)>& on_logits) {
  engine::NllEvent result;
  EventStream events(conductor, std::move(request));
  while (true) {
    const auto event = events.next();
    if (const auto* logits = std::get_if<engine::LogitsEvent>(&event)) on_logits(*logits);
    if (const auto* nll = std::get_if<engine::NllEvent>(&event)) result = *nll;
    if (std::holds_alternative<engine::DoneEvent>(event)) return result;
  }
}

}  // namespace tandem::cli
