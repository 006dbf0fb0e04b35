#include "server/openai.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/json_lines.h"
#include "base/limits.h"
#include "server/served_model.h"

namespace tandem::server {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int default_text_tokens = 16;  // OpenAI's, of /v1/completions

std::string shown(const ordered_json& value) {
  constexpr std::size_t most = 60;
  const std::string text = value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  return text.size() <= most ? text : text.substr(0, most) + "…";
}

[[noreturn]] void reject(const std::string& param, const ordered_json& value, const char* expected) {
  throw InputError(fmt::format("'{}' is {}; expected {}", param, shown(value), expected), param);
}

// Null counts as absent.
const ordered_json* find(const ordered_json& body, const char* name) {
  const auto found = body.find(name);
  return found == body.end() || found->is_null() ? nullptr : &*found;
}

void read(const ordered_json& body, const char* name, bool& target) {
  const auto* value = find(body, name);
  if (!value) return;
  if (!value->is_boolean()) reject(name, *value, "true or false");
  target = value->get<bool>();
}

void read(const ordered_json& body, const char* name, float& target) {
  const auto* value = find(body, name);
  if (!value) return;
  if (!value->is_number() || !std::isfinite(value->get<float>())) reject(name, *value, "a number");
  target = value->get<float>();
}

void read(const ordered_json& body, const char* name, int& target, int least) {
  const auto* value = find(body, name);
  if (!value) return;
  if (!value->is_number_integer() || value->get<std::int64_t>() < least ||
      value->get<std::int64_t>() > INT32_MAX) {
    reject(name, *value, least > 0 ? "a whole number above 0" : "a whole number, 0 or more");
  }
  target = value->get<int>();
}

void read_sampling(const ordered_json& body, engine::Sampling& sampling) {
  read(body, "temperature", sampling.temperature);
  read(body, "top_p", sampling.top_p);
  read(body, "min_p", sampling.min_p);
  read(body, "top_k", sampling.top_k, 0);
  read(body, "repetition_penalty", sampling.repetition_penalty);
  read(body, "frequency_penalty", sampling.frequency_penalty);
  read(body, "presence_penalty", sampling.presence_penalty);
  sampling.seed = random_seed();
  if (const auto* seed = find(body, "seed")) {
    if (!seed->is_number_integer()) reject("seed", *seed, "a whole number");
    sampling.seed = seed->is_number_unsigned() ? seed->get<std::uint64_t>()
                                               : static_cast<std::uint64_t>(seed->get<std::int64_t>());
  }
  validate(sampling);
}

void read_stops(const ordered_json& body, std::vector<std::string>& stops) {
  const auto* value = find(body, "stop");
  if (!value) return;
  const ordered_json list = value->is_array() ? *value : ordered_json::array({*value});
  if (list.size() > limits::stop_strings) reject("stop", *value, "at most 4 strings");
  for (const auto& stop : list) {
    if (!stop.is_string() || stop.get_ref<const std::string&>().empty() ||
        stop.get_ref<const std::string&>().size() > limits::stop_string_bytes) {
      reject("stop", *value, "strings that are neither empty nor longer than 1024 bytes");
    }
    stops.push_back(stop.get<std::string>());
  }
}

// What OpenAI knows and this version does not: refused rather than ignored, unless it asks for nothing.
void reject_unsupported(const ordered_json& body) {
  const auto refuse = [](const char* name) {
    throw InputError(fmt::format("'{}' is not supported by this version", name), name);
  };
  if (const auto* n = find(body, "n"); n && *n != 1) reject("n", *n, "1");
  if (const auto* best_of = find(body, "best_of"); best_of && *best_of != 1) reject("best_of", *best_of, "1");
  for (const char* name :
       {"tools", "functions", "logit_bias", "suffix", "echo", "logprobs", "top_logprobs"}) {
    const auto* value = find(body, name);
    if (value && !value->empty() && *value != false && *value != "") refuse(name);
  }
  if (const auto* format = find(body, "response_format")) {
    if (!format->is_object() || format->value("type", ordered_json()) != "text") refuse("response_format");
  }
}

void read_common(const ordered_json& body, CompletionRequest& request) {
  reject_unsupported(body);
  read_sampling(body, request.sampling);
  read_stops(body, request.stops);
  read(body, "ignore_eos", request.ignore_end);
  read(body, "stream", request.stream);
  read(body, "max_tokens", request.max_tokens, 1);
  read(body, "max_completion_tokens", request.max_tokens, 1);
  if (const auto* options = find(body, "stream_options")) {
    if (!options->is_object()) reject("stream_options", *options, "an object");
    read(*options, "include_usage", request.include_usage);
  }
}

// A message's content: a string, or parts of type text, put together.
std::string content_text(const ordered_json& content, const std::string& param) {
  if (content.is_null()) return "";
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) reject(param, content, "a string or a list of parts");
  std::string text;
  for (const auto& part : content) {
    if (!part.is_object() || part.value("type", ordered_json()) != "text" || !part.contains("text") ||
        !part["text"].is_string()) {
      reject(param, part, "parts {\"type\": \"text\", \"text\": …}");
    }
    text += part["text"].get<std::string>();
  }
  return text;
}

ordered_json parse_messages(const ordered_json& body) {
  const auto* messages = find(body, "messages");
  if (!messages) throw InputError("'messages' is missing: give a list of messages", "messages");
  if (!messages->is_array() || messages->empty())
    reject("messages", *messages, "a list of at least one message");
  auto result = ordered_json::array();
  for (std::size_t i = 0; i < messages->size(); ++i) {
    ordered_json message = (*messages)[i];
    const std::string param = fmt::format("messages[{}]", i);
    if (!message.is_object()) reject(param, message, "an object with role and content");
    const auto role = message.value("role", ordered_json());
    if (role == "developer")
      message["role"] = "system";
    else if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
      reject(param + ".role", role, "system, user, assistant or tool");
    }
    if (!message.contains("content") && role != "assistant") reject(param, message, "a \"content\"");
    message["content"] = content_text(message.value("content", ordered_json()), param + ".content");
    result.push_back(std::move(message));
  }
  return result;
}

std::vector<int> parse_ids(const ordered_json& list) {
  std::vector<int> ids;
  for (const auto& id : list) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > INT32_MAX) {
      reject("prompt", id, "token ids, 0 or more");
    }
    ids.push_back(id.get<int>());
  }
  return ids;
}

json chunk(const AnswerHead& head, json choices) {
  return {{"id", head.id},
          {"object", head.chat ? "chat.completion.chunk" : "text_completion"},
          {"created", head.created},
          {"model", head.model},
          {"choices", std::move(choices)}};
}

json choice(const AnswerHead& head, json delta, const json& reason) {
  json one{{"index", 0}, {"finish_reason", reason}, {"logprobs", nullptr}};
  if (head.chat)
    one["delta"] = std::move(delta);
  else
    one["text"] = delta.value("content", "");
  return one;
}

std::string dumped(const json& object) { return object.dump(-1, ' ', false, json::error_handler_t::replace); }

}  // namespace

ordered_json parse_body(std::string_view body) {
  const auto bounded = [](int depth, ordered_json::parse_event_t, ordered_json&) {
    if (depth > limits::json_depth) throw InputError("the body's JSON is nested too deep");
    return true;
  };
  ordered_json object;
  try {
    object = ordered_json::parse(body, bounded);
  } catch (const ordered_json::exception& error) {
    throw InputError(fmt::format("the body is no valid JSON in UTF-8: {}", json_fault(error)));
  }
  if (!object.is_object()) throw InputError("the body is no JSON object");
  return object;
}

CompletionRequest parse_chat_request(const ordered_json& body, const engine::Sampling& defaults) {
  CompletionRequest request;
  request.sampling = defaults;
  request.prompt = parse_messages(body);
  if (const auto* variables = find(body, "chat_template_kwargs")) {
    if (!variables->is_object()) reject("chat_template_kwargs", *variables, "an object");
    request.template_variables = *variables;
  }
  read_common(body, request);
  return request;
}

CompletionRequest parse_text_request(const ordered_json& body, const engine::Sampling& defaults) {
  CompletionRequest request;
  request.sampling = defaults;
  request.max_tokens = default_text_tokens;
  const auto* prompt = find(body, "prompt");
  if (!prompt) throw InputError("'prompt' is missing: give a string or token ids", "prompt");
  // A list of one prompt is that prompt.
  const ordered_json& one =
      prompt->is_array() && prompt->size() == 1 && !(*prompt)[0].is_number() ? (*prompt)[0] : *prompt;
  if (one.is_string())
    request.prompt = one.get<std::string>();
  else if (one.is_array() && !one.empty() && one[0].is_number())
    request.prompt = parse_ids(one);
  else
    reject("prompt", *prompt, "one string, or one list of token ids");
  read_common(body, request);
  return request;
}

AnswerHead make_answer_head(const CompletionRequest& request, const std::string& model) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return {fmt::format("{}-{:016x}", request.is_chat() ? "chatcmpl" : "cmpl", random_seed()),
          std::chrono::duration_cast<std::chrono::seconds>(now).count(), model, request.is_chat()};
}

json usage_json(const engine::DoneEvent& done) {
  return {{"prompt_tokens", done.prompt_tokens},
          {"completion_tokens", done.generated_tokens},
          {"total_tokens", done.prompt_tokens + done.generated_tokens}};
}

std::string finish_reason(const engine::DoneEvent& done, bool stop_string) {
  return done.reason == engine::FinishReason::length && !stop_string ? "length" : "stop";
}

std::string answer_json(const AnswerHead& head, const std::string& text, const engine::DoneEvent& done,
                        bool stop_string) {
  json one{{"index", 0}, {"finish_reason", finish_reason(done, stop_string)}, {"logprobs", nullptr}};
  if (head.chat)
    one["message"] = {{"role", "assistant"}, {"content", text}};
  else
    one["text"] = text;
  json answer = chunk(head, json::array({one}));
  answer["object"] = head.chat ? "chat.completion" : "text_completion";
  answer["usage"] = usage_json(done);
  answer["timings"] = {
      {"queued_s", done.queued_s}, {"prefill_s", done.prefill_s}, {"decode_s", done.decode_s}};
  return dumped(answer);
}

std::string first_chunk(const AnswerHead& head) {
  return dumped(chunk(head, json::array({choice(head, {{"role", "assistant"}, {"content", ""}}, nullptr)})));
}

std::string text_chunk(const AnswerHead& head, const std::string& text) {
  return dumped(chunk(head, json::array({choice(head, {{"content", text}}, nullptr)})));
}

std::string last_chunk(const AnswerHead& head, const std::string& reason) {
  return dumped(chunk(head, json::array({choice(head, json::object(), reason)})));
}

std::string usage_chunk(const AnswerHead& head, const engine::DoneEvent& done) {
  json object = chunk(head, json::array());
  object["usage"] = usage_json(done);
  return dumped(object);
}

std::string models_json(const std::string& model, std::int64_t created, int context) {
  const json one{{"id", model},
                 {"object", "model"},
                 {"created", created},
                 {"owned_by", "tandem"},
                 {"max_model_len", context}};
  return dumped({{"object", "list"}, {"data", {one}}});
}

}  // namespace tandem::server
