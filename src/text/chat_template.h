// A model's chat template: Jinja as transformers renders it, by the minijinja crate (rust/).
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace tandem::text {

class ChatTemplate {
 public:
  // From `folder`/chat_template.jinja, or else "chat_template" in tokenizer_config.json (a string, or a list of
  // {name, template}: "default" is taken). Nothing where the model has none. InputError names the file where the
  // template does not parse.
  static std::optional<ChatTemplate> load(const std::filesystem::path& folder);

  // The prompt for `messages` (a list of {"role", "content"}); `variables` (an object; "tools", "enable_thinking", …)
  // are visible to the template, as are bos_token, eos_token, pad_token and unk_token of tokenizer_config.json.
  // InputError carries what the template itself raised (raise_exception) or where it failed.
  std::string render(const nlohmann::json& messages, bool add_generation_prompt,
                     const nlohmann::json& variables = nlohmann::json::object()) const;

 private:
  std::string name_;  // the file it came from, for messages
  std::string source_;
  nlohmann::json special_tokens_;
};

}  // namespace tandem::text
