#include "engine/request.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace tandem::engine {
namespace {

using nlohmann::json;

constexpr auto largest = std::numeric_limits<std::uint64_t>::max();

Sampling all_set() {
  return {.temperature = 0.7F,
          .top_k = 40,
          .top_p = 0.9F,
          .min_p = 0.05F,
          .repetition_penalty = 1.1F,
          .frequency_penalty = -0.5F,
          .presence_penalty = 1.5F,
          .seed = largest};
}

// No field has its default, so that one that is forgotten shows.
const std::vector<std::pair<Request, json>>& requests() {
  static const std::vector<std::pair<Request, json>> table{
      {GenerateRequest{largest, {1, 2, 3}, 9, {0, 7}, all_set()},
       {{"generate",
         {{"id", largest},
          {"prompt", {1, 2, 3}},
          {"max_tokens", 9},
          {"end_ids", {0, 7}},
          {"sampling",
           {{"temperature", 0.7F},
            {"top_k", 40},
            {"top_p", 0.9F},
            {"min_p", 0.05F},
            {"repetition_penalty", 1.1F},
            {"frequency_penalty", -0.5F},
            {"presence_penalty", 1.5F},
            {"seed", largest}}}}}}},
      {ScoreRequest{5, {4, 5}, true, {1}},
       {{"score", {{"id", 5}, {"ids", {4, 5}}, {"nll", true}, {"positions", {1}}}}}},
      {Cancel{6}, {{"cancel", {{"id", 6}}}}},
  };
  return table;
}

const std::vector<std::pair<Event, json>>& events() {
  const float third = 1.0F / 3, tiny = std::numeric_limits<float>::denorm_min();
  static const std::vector<std::pair<Event, json>> table{
      {TokenEvent{1, 42}, {{"token", {{"id", 1}, {"token", 42}}}}},
      {DoneEvent{2, FinishReason::length, 3, 4, 0.5, 0.1, 1.0 / 3},
       {{"done",
         {{"id", 2},
          {"reason", "length"},
          {"prompt_tokens", 3},
          {"generated_tokens", 4},
          {"queued_s", 0.5},
          {"prefill_s", 0.1},
          {"decode_s", 1.0 / 3}}}}},
      {DoneEvent{2, FinishReason::cancelled},
       {{"done",
         {{"id", 2},
          {"reason", "cancelled"},
          {"prompt_tokens", 0},
          {"generated_tokens", 0},
          {"queued_s", 0.0},
          {"prefill_s", 0.0},
          {"decode_s", 0.0}}}}},
      {LogitsEvent{3, 7, {third, -tiny, 1e38F}},
       {{"logits", {{"id", 3}, {"position", 7}, {"logits", {third, -tiny, 1e38F}}}}}},
      {NllEvent{4, 12.5, 6}, {{"nll", {{"id", 4}, {"sum_nll", 12.5}, {"tokens", 6}}}}},
      {RefusedEvent{5, "no \"room\"\n", "prompt"},
       {{"refused", {{"id", 5}, {"message", "no \"room\"\n"}, {"param", "prompt"}}}}},
  };
  return table;
}

TEST(RequestTest, EveryFieldOfARequestCrossesThePipe) {
  for (const auto& [request, wire] : requests()) {
    EXPECT_EQ(to_json(request), wire);
    const Request back = request_from_json(json::parse(wire.dump()));
    EXPECT_EQ(back.index(), request.index());
    EXPECT_EQ(to_json(back), wire);
  }
}

TEST(RequestTest, EveryFieldOfAnEventCrossesThePipe) {
  for (const auto& [event, wire] : events()) {
    EXPECT_EQ(to_json(event), wire);
    const Event back = event_from_json(json::parse(wire.dump()));
    EXPECT_EQ(back.index(), event.index());
    EXPECT_EQ(to_json(back), wire);
    EXPECT_EQ(id_of(back), wire.begin().value()["id"].get<std::uint64_t>());
  }
}

TEST(RequestTest, FloatsKeepEveryBit) {
  const std::vector<float> floats{0.1F, 1.0F / 3, -0.0F, std::numeric_limits<float>::denorm_min(),
                                  std::numeric_limits<float>::max()};
  const auto back = event_from_json(json::parse(to_json(Event(LogitsEvent{1, 0, floats})).dump()));
  EXPECT_EQ(std::get<LogitsEvent>(back).logits, floats);
}

// Every message without one of its fields, and with one of the wrong type.
TEST(RequestTest, MalformedMessagesAreClusterErrors) {
  const auto check = [](const auto& table, auto parse) {
    for (const auto& [value, wire] : table) {
      const std::string name = wire.begin().key();
      for (const auto& [field, ignored] : wire[name].items()) {
        json missing = wire, wrong = wire;
        missing[name].erase(field);
        wrong[name][field] = json::object({{"a", 1}});
        EXPECT_THROW(parse(missing), ClusterError) << missing;
        EXPECT_THROW(parse(wrong), ClusterError) << wrong;
      }
    }
  };
  check(requests(), request_from_json);
  check(events(), event_from_json);
}

TEST(RequestTest, UnknownMessagesAreClusterErrors) {
  for (
      const char* text :
      {"{}", "null", "[]", "[1, 2]", "7", "\"generate\"", R"({"generate": null})", R"({"generate": []})",
       R"({"token": 5})",
       R"({"done": {"id": 1, "reason": "bored", "prompt_tokens": 0, "generated_tokens": 0, "queued_s": 0, "prefill_s": 0, "decode_s": 0}})",
       R"({"dance": {"id": 1}})"}) {
    EXPECT_THROW(request_from_json(json::parse(text)), ClusterError) << text;
    EXPECT_THROW(event_from_json(json::parse(text)), ClusterError) << text;
  }
  // An event is no request.
  EXPECT_THROW(request_from_json(to_json(Event(TokenEvent{1, 2}))), ClusterError);
  EXPECT_THROW(event_from_json(to_json(Request(Cancel{1}))), ClusterError);
}

struct Bounds {
  const char* param;
  float Sampling::*field;
  std::vector<float> allowed, refused;
};

TEST(RequestTest, ValidateKnowsEveryBound) {
  const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
  const std::vector<Bounds> table{
      {"temperature", &Sampling::temperature, {0, 0.5F, 100}, {-0.1F, 100.1F, nan, infinity}},
      {"top_p", &Sampling::top_p, {1e-6F, 1}, {0, -1, 1.001F, nan, infinity}},
      {"min_p", &Sampling::min_p, {0, 1}, {-0.1F, 1.1F, nan}},
      {"repetition_penalty", &Sampling::repetition_penalty, {0.1F, 1, 100}, {0, -1, 101, nan, infinity}},
      {"frequency_penalty", &Sampling::frequency_penalty, {-2, 2}, {-2.1F, 2.1F, nan}},
      {"presence_penalty", &Sampling::presence_penalty, {-2, 2}, {-2.1F, 2.1F, nan}},
  };
  const auto refused_param = [](const Sampling& sampling) -> std::string {
    try {
      validate(sampling);
      return "";
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find(error.param() + " is "), std::string::npos) << error.what();
      return error.param();
    }
  };
  for (const auto& row : table) {
    Sampling sampling;
    for (const float value : row.allowed) {
      sampling.*row.field = value;
      EXPECT_EQ(refused_param(sampling), "") << row.param << " " << value;
    }
    for (const float value : row.refused) {
      sampling.*row.field = value;
      EXPECT_EQ(refused_param(sampling), row.param) << value;
    }
  }
  EXPECT_EQ(refused_param({.top_k = 0}), "");
  EXPECT_EQ(refused_param({.top_k = -1}), "top_k");
}

}  // namespace
}  // namespace tandem::engine
