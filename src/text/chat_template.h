// A model's chat template: Jinja as transformers renders it, by the minijinja crate (rust/).
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace tandem::text {

class ChatTemplate {
 public:
  // From `folder`/chat_template.jinja, or else "chat_template" in tokenizer_config.json (a string, or a list
  // of {name, template}: "default" is taken). Nothing where the model has none. InputError names the file
  // where the template does not parse.
  static std::optional<ChatTemplate> load(const std::filesystem::path& folder);

  // The prompt for `messages` (a list of {"role", "content"}); `variables` (an object; "tools",
  // "enable_thinking", …) are visible to the template, as are bos_token, eos_token, pad_token and unk_token
  // of tokenizer_config.json. Objects keep the order of their keys, which shows where a template writes tools
  // as JSON: parse a request with ordered_json. InputError carries what the template itself raised
  // (raise_exception) or where it failed.
  std::string render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                     const nlohmann::ordered_json& variables = nlohmann::ordered_json::object()) const;

 private:
  struct Handle;
  ChatTemplate(std::string name, const std::string& source, nlohmann::ordered_json special_tokens);

  std::string name_;  // the file it came from, for messages
  nlohmann::ordered_json special_tokens_;
  std::shared_ptr<const Handle> handle_;  // parsed, never changed
};

}  // namespace tandem::text
