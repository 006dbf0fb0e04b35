#include "server/openai.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace tandem::server {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// The parameter that the InputError of `body` names; "nothing thrown" where none is thrown.
template <typename Body>
std::string blamed(Body body) {
  try {
    body();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()), "");
    return error.param();
  }
  return "nothing thrown";
}

ordered_json chat_with(const std::string& fields) {
  auto body = ordered_json::parse(R"({"messages": [{"role": "user", "content": "Hi"}]})");
  body.update(ordered_json::parse(fields));
  return body;
}

ordered_json text_with(const std::string& fields) {
  auto body = ordered_json::parse(R"({"prompt": "Hi"})");
  body.update(ordered_json::parse(fields));
  return body;
}

TEST(OpenAi, NamesTheWrongFieldOfAChat) {
  const std::pair<const char*, const char*> rows[] = {
      {R"({"messages": null})", "messages"},
      {R"({"messages": []})", "messages"},
      {R"({"messages": {}})", "messages"},
      {R"({"messages": [1]})", "messages[0]"},
      {R"({"messages": [{"content": "Hi"}]})", "messages[0].role"},
      {R"({"messages": [{"role": "king", "content": "Hi"}]})", "messages[0].role"},
      {R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "user"}]})", "messages[1]"},
      {R"({"messages": [{"role": "user", "content": 5}]})", "messages[0].content"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", "messages[0].content"},
      {R"({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]})",
       "messages[0].content"},
      {R"({"temperature": "1"})", "temperature"},
      {R"({"temperature": -0.1})", "temperature"},
      {R"({"temperature": 1e300})", "temperature"},
      {R"({"top_p": 0})", "top_p"},
      {R"({"top_p": true})", "top_p"},
      {R"({"top_k": -1})", "top_k"},
      {R"({"min_p": 1.1})", "min_p"},
      {R"({"repetition_penalty": 0})", "repetition_penalty"},
      {R"({"frequency_penalty": 2.1})", "frequency_penalty"},
      {R"({"presence_penalty": -2.1})", "presence_penalty"},
      {R"({"max_tokens": 0})", "max_tokens"},
      {R"({"max_tokens": -5})", "max_tokens"},
      {R"({"max_tokens": 2.5})", "max_tokens"},
      {R"({"max_tokens": 18446744073709551615})", "max_tokens"},
      {R"({"max_completion_tokens": "9"})", "max_completion_tokens"},
      {R"({"n": 2})", "n"},
      {R"({"seed": 1.5})", "seed"},
      {R"({"seed": "1"})", "seed"},
      {R"({"stop": 1})", "stop"},
      {R"({"stop": ""})", "stop"},
      {R"({"stop": ["a", ""]})", "stop"},
      {R"({"stop": ["a", "b", "c", "d", "e"]})", "stop"},
      {R"({"stream": 1})", "stream"},
      {R"({"stream_options": true})", "stream_options"},
      {R"({"stream_options": {"include_usage": 1}})", "include_usage"},
      {R"({"logprobs": true})", "logprobs"},
      {R"({"top_logprobs": 2})", "top_logprobs"},
      {R"({"tools": [{}]})", "tools"},
      {R"({"functions": [{}]})", "functions"},
      {R"({"logit_bias": {"1": 2}})", "logit_bias"},
      {R"({"response_format": {"type": "json_object"}})", "response_format"},
      {R"({"response_format": {"type": 5}})", "response_format"},
      {R"({"response_format": {}})", "response_format"},
      {R"({"response_format": "text"})", "response_format"},
      {R"({"ignore_eos": "no"})", "ignore_eos"},
      {R"({"chat_template_kwargs": 1})", "chat_template_kwargs"},
  };
  for (const auto& [fields, param] : rows) {
    EXPECT_EQ(blamed([&] { parse_chat_request(chat_with(fields), {}); }), param) << fields;
  }
  EXPECT_EQ(blamed([&] {
              parse_chat_request(chat_with(json{{"stop", std::string(2000, 'x')}}.dump()), {});
            }),
            "stop");
}

TEST(OpenAi, NullUnknownAndEmptyFieldsCountAsAbsent) {
  for (
      const char* fields :
      {R"({"temperature": null, "top_p": null, "top_k": null, "min_p": null, "seed": null, "stop": null, "n": null})",
       R"({"max_tokens": null, "max_completion_tokens": null, "stream": null, "stream_options": null})",
       R"({"tools": [], "functions": null, "logit_bias": {}, "logprobs": false, "n": 1, "user": "me"})",
       R"({"response_format": {"type": "text"}, "unheard_of": [{}], "chat_template_kwargs": null})"}) {
    const auto request = parse_chat_request(chat_with(fields), {});
    EXPECT_EQ(request.max_tokens, 0) << fields;
    EXPECT_TRUE(request.stops.empty() && !request.stream && !request.include_usage && !request.ignore_end);
    EXPECT_EQ(request.sampling.temperature, engine::Sampling().temperature);
  }
}

TEST(OpenAi, ReadsEveryField) {
  const auto request =
      parse_chat_request(chat_with(R"({"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
      "repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": -0.3, "seed": -1, "max_tokens": 7,
      "max_completion_tokens": 9, "stop": ["a", "b"], "stream": true, "stream_options": {"include_usage": true},
      "ignore_eos": true, "chat_template_kwargs": {"enable_thinking": false}})"),
                         {});
  EXPECT_FLOAT_EQ(request.sampling.temperature, 0.5);
  EXPECT_FLOAT_EQ(request.sampling.top_p, 0.9);
  EXPECT_EQ(request.sampling.top_k, 40);
  EXPECT_FLOAT_EQ(request.sampling.min_p, 0.1);
  EXPECT_FLOAT_EQ(request.sampling.repetition_penalty, 1.1);
  EXPECT_FLOAT_EQ(request.sampling.frequency_penalty, 0.2);
  EXPECT_FLOAT_EQ(request.sampling.presence_penalty, -0.3);
  EXPECT_EQ(request.sampling.seed, ~std::uint64_t{0});
  EXPECT_EQ(request.max_tokens, 9);
  EXPECT_EQ(request.stops, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(request.stream && request.include_usage && request.ignore_end);
  EXPECT_EQ(request.template_variables, ordered_json({{"enable_thinking", false}}));
}

TEST(OpenAi, MessagesBecomeWhatTemplatesRead) {
  const auto request = parse_chat_request(ordered_json::parse(R"({"messages": [
      {"role": "developer", "content": "Be kind."},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": null}, {"role": "tool", "content": "c"}]})"),
                                          {});
  ASSERT_TRUE(request.is_chat());
  const auto& messages = std::get<ordered_json>(request.prompt);
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_EQ(messages[0]["role"], "system");
  EXPECT_EQ(messages[1]["content"], "ab");
  EXPECT_EQ(messages[2]["content"], "");
  EXPECT_EQ(messages[3]["role"], "tool");
}

TEST(OpenAi, APromptIsOneTextOrOneListOfIds) {
  const auto prompt = [](const char* fields) { return parse_text_request(text_with(fields), {}).prompt; };
  EXPECT_EQ(std::get<std::string>(prompt(R"({"prompt": "a"})")), "a");
  EXPECT_EQ(std::get<std::string>(prompt(R"({"prompt": ["a"]})")), "a");
  EXPECT_EQ(std::get<std::vector<int>>(prompt(R"({"prompt": [1, 2]})")), (std::vector<int>{1, 2}));
  EXPECT_EQ(std::get<std::vector<int>>(prompt(R"({"prompt": [7]})")), (std::vector<int>{7}));
  EXPECT_EQ(std::get<std::vector<int>>(prompt(R"({"prompt": [[1, 2]]})")), (std::vector<int>{1, 2}));
  EXPECT_EQ(parse_text_request(text_with("{}"), {}).max_tokens, 16);
  for (const char* fields :
       {R"({"prompt": null})", R"({"prompt": 5})", R"({"prompt": []})", R"({"prompt": ["a", "b"]})",
        R"({"prompt": [[1], [2]]})", R"({"prompt": [[]]})", R"({"prompt": [1, "a"]})", R"({"prompt": [-1]})",
        R"({"prompt": [1.5]})", R"({"prompt": [4294967296]})", R"({"prompt": {}})"}) {
    EXPECT_EQ(blamed([&] { parse_text_request(text_with(fields), {}); }), "prompt") << fields;
  }
  EXPECT_EQ(blamed([&] { parse_text_request(text_with(R"({"echo": true})"), {}); }), "echo");
  EXPECT_EQ(blamed([&] { parse_text_request(text_with(R"({"best_of": 2})"), {}); }), "best_of");
}

TEST(OpenAi, ABodyIsOneJsonObjectOfBoundedDepth) {
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"), std::string("{} {}"),
        std::string("{\"a\":\"\xff\"}"), std::string("{\"a\":1e999}"), std::string(1 << 20, '[')}) {
    EXPECT_NE(blamed([&] { parse_body(body); }), "nothing thrown") << body.substr(0, 20);
  }
  std::string nested;
  for (int i = 0; i < 100'000; ++i) nested += "{\"a\":";
  EXPECT_NE(blamed([&] { parse_body(nested); }), "nothing thrown");
  EXPECT_EQ(parse_body(R"({"a": [[[1]]]})")["a"][0][0][0], 1);
}

TEST(OpenAi, AnswersHaveOpenAisForm) {
  engine::DoneEvent done;
  done.reason = engine::FinishReason::length;
  done.prompt_tokens = 3;
  done.generated_tokens = 2;
  EXPECT_EQ(finish_reason(done, /*stop_string=*/false), "length");
  EXPECT_EQ(finish_reason(done, /*stop_string=*/true), "stop");

  const AnswerHead chat{"chatcmpl-1", 5, "m", true}, plain{"cmpl-1", 5, "m", false};
  const auto whole = json::parse(answer_json(chat, "Hi \xff", done, false));
  EXPECT_EQ(whole["object"], "chat.completion");
  EXPECT_EQ(whole["choices"][0]["message"], json({{"role", "assistant"}, {"content", "Hi \xEF\xBF\xBD"}}));
  EXPECT_EQ(whole["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(whole["usage"], json({{"prompt_tokens", 3}, {"completion_tokens", 2}, {"total_tokens", 5}}));
  const auto text = json::parse(answer_json(plain, "Hi", done, true));
  EXPECT_EQ(text["object"], "text_completion");
  EXPECT_EQ(text["choices"][0]["text"], "Hi");
  EXPECT_EQ(text["choices"][0]["finish_reason"], "stop");

  EXPECT_EQ(json::parse(first_chunk(chat))["choices"][0]["delta"],
            json({{"role", "assistant"}, {"content", ""}}));
  EXPECT_EQ(json::parse(text_chunk(chat, "x"))["choices"][0]["delta"], json({{"content", "x"}}));
  EXPECT_EQ(json::parse(text_chunk(plain, "x"))["choices"][0]["text"], "x");
  const auto last = json::parse(last_chunk(chat, "stop"))["choices"][0];
  EXPECT_EQ(last["delta"], json::object());
  EXPECT_EQ(last["finish_reason"], "stop");
  const auto usage = json::parse(usage_chunk(chat, done));
  EXPECT_EQ(usage["choices"], json::array());
  EXPECT_EQ(usage["usage"]["total_tokens"], 5);
  EXPECT_EQ(json::parse(models_json("m", 5, 9))["data"][0]["id"], "m");
  EXPECT_EQ(json::parse(models_json("m", 5, 9))["data"][0]["max_model_len"], 9);
  EXPECT_TRUE(json::parse(models_json("m", 5, 9))["data"].is_array());
}

}  // namespace
}  // namespace tandem::server
