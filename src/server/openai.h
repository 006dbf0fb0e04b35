// OpenAI's completions API: what requests mean and what answers look like. Pure.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/request.h"

namespace tandem::server {

struct CompletionRequest {
  // A conversation (a list of messages), a text, or token ids.
  std::variant<nlohmann::ordered_json, std::string, std::vector<int>> prompt;
  nlohmann::ordered_json template_variables = nlohmann::ordered_json::object();
  int max_tokens = 0;  // 0: as many as the context allows
  engine::Sampling sampling;
  std::vector<std::string> stops;
  bool ignore_end = false;  // go on after an end id
  bool stream = false;
  bool include_usage = false;

  bool is_chat() const { return std::holds_alternative<nlohmann::ordered_json>(prompt); }
};

// A request's body as JSON. InputError where it is none, no object, or nested too deep.
nlohmann::ordered_json parse_body(std::string_view body);

// The bodies of /v1/chat/completions and /v1/completions. What is null or unknown counts as absent.
// InputError names the parameter that has the wrong type or value.
CompletionRequest parse_chat_request(const nlohmann::ordered_json& body, const engine::Sampling& defaults);
CompletionRequest parse_text_request(const nlohmann::ordered_json& body, const engine::Sampling& defaults);

// What all the objects of one answer share.
struct AnswerHead {
  std::string id;
  std::int64_t created = 0;  // seconds since 1970
  std::string model;
  bool chat = true;
};
AnswerHead make_answer_head(const CompletionRequest& request, const std::string& model);

nlohmann::json usage_json(const engine::DoneEvent& done);
// "stop" or "length".
std::string finish_reason(const engine::DoneEvent& done, bool stop_string);

// The whole answer at once.
std::string answer_json(const AnswerHead& head, const std::string& text, const engine::DoneEvent& done,
                        bool stop_string);
// The chunks of a streamed answer: first (chat alone), text, last, and usage.
std::string first_chunk(const AnswerHead& head);
std::string text_chunk(const AnswerHead& head, const std::string& text);
std::string last_chunk(const AnswerHead& head, const std::string& reason);
std::string usage_chunk(const AnswerHead& head, const engine::DoneEvent& done);

// GET /v1/models. `context`: tokens that a request may have; OpenAI's list has no such field, vLLM's does.
std::string models_json(const std::string& model, std::int64_t created, int context);

}  // namespace tandem::server
