#include "engine/request.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace tandem::engine {

using nlohmann::json;

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Sampling, temperature, top_k, top_p, min_p, repetition_penalty,
                                   frequency_penalty, presence_penalty, seed)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(GenerateRequest, id, prompt, max_tokens, end_ids, sampling)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ScoreRequest, id, ids, nll, positions)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Cancel, id)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TokenEvent, id, token)

// Not by NLOHMANN_JSON_SERIALIZE_ENUM, which reads an unknown name as the first one.
constexpr std::array reason_names{"end", "length", "cancelled"};
static void to_json(json& name, FinishReason reason) {
  name = reason_names[static_cast<std::size_t>(reason)];
}
static void from_json(const json& name, FinishReason& reason) {
  const auto found = std::find(reason_names.begin(), reason_names.end(), name.get<std::string>());
  if (found == reason_names.end())
    throw ClusterError("unknown end of an answer on the control channel: " + name.dump());
  reason = static_cast<FinishReason>(found - reason_names.begin());
}

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(DoneEvent, id, reason, prompt_tokens, generated_tokens, queued_s,
                                   prefill_s, decode_s)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(LogitsEvent, id, position, logits)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(NllEvent, id, sum_nll, tokens)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RefusedEvent, id, message, param)

namespace {

// The name of each alternative on the wire.
constexpr const char* name_of(const GenerateRequest&) { return "generate"; }
constexpr const char* name_of(const ScoreRequest&) { return "score"; }
constexpr const char* name_of(const Cancel&) { return "cancel"; }
constexpr const char* name_of(const TokenEvent&) { return "token"; }
constexpr const char* name_of(const DoneEvent&) { return "done"; }
constexpr const char* name_of(const LogitsEvent&) { return "logits"; }
constexpr const char* name_of(const NllEvent&) { return "nll"; }
constexpr const char* name_of(const RefusedEvent&) { return "refused"; }

template <typename Variant>
json named(const Variant& value) {
  return std::visit([](const auto& alternative) { return json{{name_of(alternative), alternative}}; }, value);
}

// The alternative of `Variant` that `object` = {name: {…}} holds.
template <typename Variant, std::size_t index = 0>
Variant unnamed(const json& object) {
  if constexpr (index == std::variant_size_v<Variant>) {
    throw ClusterError("unknown message on the control channel: " + object.dump().substr(0, 80));
  } else {
    std::variant_alternative_t<index, Variant> alternative;
    const auto found = object.find(name_of(alternative));
    if (found == object.end()) return unnamed<Variant, index + 1>(object);
    try {
      found->get_to(alternative);
    } catch (const json::exception& error) {
      throw ClusterError(
          fmt::format("malformed \"{}\" on the control channel: {}", name_of(alternative), error.what()));
    }
    return alternative;
  }
}

void require(bool holds, const char* param, double value, const char* expected) {
  if (!holds) throw InputError(fmt::format("{} is {}; expected {}", param, value, expected), param);
}

}  // namespace

void validate(const Sampling& s) {
  require(s.temperature >= 0 && s.temperature <= 100, "temperature", s.temperature, "0 to 100");
  require(s.top_k >= 0, "top_k", s.top_k, "0 (off) or more");
  require(s.top_p > 0 && s.top_p <= 1, "top_p", s.top_p, "above 0, at most 1");
  require(s.min_p >= 0 && s.min_p <= 1, "min_p", s.min_p, "0 to 1");
  require(s.repetition_penalty > 0 && s.repetition_penalty <= 100, "repetition_penalty", s.repetition_penalty,
          "above 0, at most 100");
  require(s.frequency_penalty >= -2 && s.frequency_penalty <= 2, "frequency_penalty", s.frequency_penalty,
          "-2 to 2");
  require(s.presence_penalty >= -2 && s.presence_penalty <= 2, "presence_penalty", s.presence_penalty,
          "-2 to 2");
}

std::uint64_t id_of(const Event& event) {
  return std::visit([](const auto& alternative) { return alternative.id; }, event);
}

json to_json(const Request& request) { return named(request); }
Request request_from_json(const json& object) { return unnamed<Request>(object); }
json to_json(const Event& event) { return named(event); }
Event event_from_json(const json& object) { return unnamed<Event>(object); }

}  // namespace tandem::engine
