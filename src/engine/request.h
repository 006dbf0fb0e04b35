// Requests that go to rank 0 and the events that come back, with their JSON for the worker's pipe.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>
#include <vector>

namespace tandem::engine {

struct Sampling {
  float temperature = 1;         // 0: the most likely token
  int top_k = 0;                 // 0: off
  float top_p = 1;               // 1: off
  float min_p = 0;               // 0: off
  float repetition_penalty = 1;  // 1: off; over prompt and answer (Keskar et al. 2019, arXiv:1909.05858)
  float frequency_penalty = 0;   // OpenAI's, over the answer
  float presence_penalty = 0;
  std::uint64_t seed = 0;  // the noise of a token depends on (seed, position) alone
};

// InputError names the parameter that is out of range.
void validate(const Sampling& sampling);

struct GenerateRequest {
  std::uint64_t id = 0;
  std::vector<int> prompt;
  int max_tokens = 0;        // 0: as many as the context allows
  std::vector<int> end_ids;  // an answer ends before one of these; empty: never
  Sampling sampling;
};

// Logits or negative log-likelihoods of given ids.
struct ScoreRequest {
  std::uint64_t id = 0;
  std::vector<int> ids;
  bool nll = false;            // else logits
  std::vector<int> positions;  // whose logits; empty: all
};

struct Cancel {
  std::uint64_t id = 0;
};

using Request = std::variant<GenerateRequest, ScoreRequest, Cancel>;

struct TokenEvent {
  std::uint64_t id = 0;
  int token = 0;
};

enum class FinishReason { end, length, cancelled };

struct DoneEvent {
  std::uint64_t id = 0;
  FinishReason reason = FinishReason::end;
  int prompt_tokens = 0;
  int generated_tokens = 0;  // the end id not counted
  double queued_s = 0;
  double prefill_s = 0;
  double decode_s = 0;  // from the first token to the last
};

struct LogitsEvent {
  std::uint64_t id = 0;
  int position = 0;
  std::vector<float> logits;
};

// The sum of the negative log-likelihoods (nats) of ids[1…] and how many these are.
struct NllEvent {
  std::uint64_t id = 0;
  double sum_nll = 0;
  int tokens = 0;
};

// The request cannot be served, and why.
struct RefusedEvent {
  std::uint64_t id = 0;
  std::string message;
  std::string param;
};

using Event = std::variant<TokenEvent, DoneEvent, LogitsEvent, NllEvent, RefusedEvent>;

std::uint64_t id_of(const Event& event);

nlohmann::json to_json(const Request& request);
Request request_from_json(const nlohmann::json& json);
nlohmann::json to_json(const Event& event);
Event event_from_json(const nlohmann::json& json);

}  // namespace tandem::engine
