#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <array>
#include <ctime>

#include "base/error.h"
#include "model_folder.h"
#include "text/tokenizer.h"

namespace tandem::text {
namespace {

using Json = nlohmann::ordered_json;

const Json user_says_hi = {{{"role", "user"}, {"content", "hi"}}};

std::string rendered(const std::string& source, const Json& messages = user_says_hi,
                     const Json& variables = Json::object()) {
  ModelFolder folder;
  folder.with("chat_template.jinja", source);
  return ChatTemplate::load(folder.path())->render(messages, /*add_generation_prompt=*/true, variables);
}

TEST(ChatTemplate, RendersAsTransformersDoes) {
  const auto golden = json_of(source_dir / "tests/golden/chat_templates.json");
  ASSERT_GE(golden["cases"].size(), 15u);
  for (const auto& row : golden["cases"]) {
    SCOPED_TRACE(row["name"].get<std::string>());
    ModelFolder folder;
    folder.with("chat_template.jinja", row["template"].get<std::string>());
    const auto& variables = row["variables"];
    const auto render = [&] {
      return ChatTemplate::load(folder.path())
          ->render(variables["messages"], variables["add_generation_prompt"], variables);
    };
    try {
      if (row.contains("raises")) {
        EXPECT_TRUE(holds(message_of<InputError>(render), {row["raises"].get<std::string>()}));
      } else {
        EXPECT_EQ(render(), row["expected"].get<std::string>());
      }
    } catch (const InputError& error) {
      ADD_FAILURE() << error.what();
    }
  }
}

TEST(ChatTemplate, DemoModelsPromptsAreGolden) {
  const auto folder = source_dir / "assets/demo-model";
  const auto chat_template = ChatTemplate::load(folder);
  const Tokenizer tokenizer(folder);
  const auto golden = json_of(source_dir / "tests/golden/demo-model/golden.json");
  ASSERT_EQ(golden["cases"].size(), 24u);
  for (const auto& row : golden["cases"]) {
    const auto prompt = chat_template->render({{{"role", "user"}, {"content", row["question"]}}}, true);
    EXPECT_EQ(tokenizer.encode(prompt, /*add_special=*/false), row["prompt_ids"].get<std::vector<int>>())
        << row["question"];
  }
}

TEST(ChatTemplate, SaysTheTime) {
  // Around midnight the two may see different days.
  for (int attempt = 0;; ++attempt) {
    std::array<char, 64> today{};
    const std::time_t now = std::time(nullptr);
    std::strftime(today.data(), today.size(), "%d %b %Y", std::localtime(&now));
    const auto text = rendered("{{ strftime_now('%d %b %Y') }}");
    if (text == today.data() || attempt == 1) {
      EXPECT_EQ(text, today.data());
      return;
    }
  }
}

TEST(ChatTemplate, ComesFromEitherFile) {
  const std::string shows_tokens = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}";
  const Json tokens = {
      {"bos_token", "<s>"}, {"eos_token", {{"content", "</s>"}, {"lstrip", false}}}, {"pad_token", nullptr}};
  auto with_template = [&](const Json& chat_template) {
    auto config = tokens;
    config["chat_template"] = chat_template;
    return config.dump();
  };
  struct Row {
    std::string config;
    std::string jinja;
    std::string expected;
  };
  const Row rows[] = {
      {with_template(shows_tokens), "", "<s></s>False"},
      {with_template("not this"), shows_tokens, "<s></s>False"},
      {"", shows_tokens, "False"},
      {with_template(
           {{{"name", "tool_use"}, {"template", "no"}}, {{"name", "default"}, {"template", "yes"}}}),
       "", "yes"},
  };
  for (const auto& row : rows) {
    ModelFolder folder;
    if (!row.config.empty()) folder.with("tokenizer_config.json", row.config);
    if (!row.jinja.empty()) folder.with("chat_template.jinja", row.jinja);
    const auto chat_template = ChatTemplate::load(folder.path());
    ASSERT_TRUE(chat_template) << row.config;
    EXPECT_EQ(chat_template->render(user_says_hi, false), row.expected);
  }
}

TEST(ChatTemplate, IsNothingWhereTheModelHasNone) {
  EXPECT_FALSE(ChatTemplate::load(ModelFolder().path()));
  EXPECT_FALSE(
      ChatTemplate::load(ModelFolder().with("tokenizer_config.json", R"({"bos_token": "<s>"})").path()));
}

TEST(ChatTemplate, NamesTheFileThatIsWrong) {
  struct Row {
    std::string name;
    std::string bytes;
    std::string what;
  };
  const Row rows[] = {
      {"chat_template.jinja", "a\n{% for %}", "line 2"},
      {"chat_template.jinja", "{% unknown %}", "unknown"},
      {"chat_template.jinja", "a \xff", "UTF-8"},
      {"tokenizer_config.json", "{\"chat_template\": \"{{\"}", "does not parse"},
      {"tokenizer_config.json", "{\"chat_template\": 7}", "chat_template.jinja"},
      {"tokenizer_config.json", "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"\"}]}", "default"},
      {"tokenizer_config.json", "{\"bos_token\": ", "no valid JSON"},
      {"tokenizer_config.json", "[]", "no JSON object"},
  };
  for (const auto& row : rows) {
    ModelFolder folder;
    folder.with(row.name, row.bytes);
    EXPECT_TRUE(holds(message_of<InputError>([&] { ChatTemplate::load(folder.path()); }),
                      {(folder.path() / row.name).string(), row.what}));
  }
}

TEST(ChatTemplate, SaysWhatFailedInIt) {
  struct Row {
    std::string source;
    std::string what;
  };
  const Row rows[] = {
      {"\n{{ messages[7].role }}", "line 2"},
      {"{{ missing() }}", "missing"},
      {"{{ 'a'.nope() }}", "nope"},
      {"{{ missing | tojson }}", "tojson of an undefined value"},
      {"{{ 1 | tojson(colour=2) }}", "colour"},
      {"{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "fuel"},
      {"{{ 'x' * 99999999999 }}", "line 1"},
      {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"},
      {"{{ strftime_now('%c' * 1000) }}", "too long"},
  };
  for (const auto& row : rows) {
    EXPECT_TRUE(
        holds(message_of<InputError>([&] { rendered(row.source); }), {"chat_template.jinja: ", row.what}))
        << row.source;
  }
}

TEST(ChatTemplate, RefusesWhatAreNoMessages) {
  Json deep = "x";
  for (int level = 0; level < 5000; ++level) deep = Json::array({std::move(deep)});
  const Json bad[] = {Json("hi"), Json::object(), Json::array({"hi"}), Json::array({{{"content", "\xff"}}}),
                      Json::array({{{"content", deep}}})};
  for (const auto& messages : bad) {
    try {
      rendered("x", messages);
      ADD_FAILURE();
    } catch (const InputError& error) {
      EXPECT_EQ(error.param(), "messages");
    }
  }
  EXPECT_THROW(rendered("x", user_says_hi, Json::array()), InputError);
  EXPECT_THROW(rendered("x", user_says_hi, {{"tools", deep}}), InputError);
}

}  // namespace
}  // namespace tandem::text
