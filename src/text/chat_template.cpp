#include "text/chat_template.h"

#include <fmt/format.h>

#include <array>
#include <cstdint>

#include "base/error.h"
#include "base/file.h"
#include "text/rust_string.h"

namespace tandem::text {

using Json = nlohmann::ordered_json;

namespace {

// One rendering's work: an instruction of the template or 64 bytes of text cost 1. A prompt of 16 MB takes
// some millions; a template that loops without end stops here.
constexpr std::uint64_t render_fuel = 50'000'000;

// As deep as the Rust side's JSON parser goes.
constexpr int json_depth = 120;

constexpr std::array special_token_names = {"bos_token", "eos_token", "pad_token", "unk_token"};
constexpr std::array reasoning_names = {"reasoning_content", "thinking", "reasoning"};

// {"bos_token": "<s>", …}: in the file a token is a string or an object with its "content".
Json special_tokens(const nlohmann::json& config) {
  Json tokens = Json::object();
  for (const char* name : special_token_names) {
    auto token = config.value(name, nlohmann::json());
    if (token.is_object()) token = token.value("content", nlohmann::json());
    if (token.is_string()) tokens[name] = token;
  }
  return tokens;
}

// The source in "chat_template" of tokenizer_config.json.
std::optional<std::string> configured_template(const nlohmann::json& config, const std::string& file) {
  const auto found = config.value("chat_template", nlohmann::json());
  if (found.is_null()) return std::nullopt;
  if (found.is_string()) return found.get<std::string>();
  if (found.is_array()) {
    for (const auto& entry : found) {
      if (entry.is_object() && entry.value("name", nlohmann::json()) == "default" &&
          entry.contains("template") && entry["template"].is_string()) {
        return entry["template"].get<std::string>();
      }
    }
  }
  throw InputError(fmt::format(
      "{}: \"chat_template\" is neither a string nor a list with a \"default\" one; put the template into a "
      "chat_template.jinja beside it",
      file));
}

bool is_deeper_than(const Json& json, int depth) {
  if (!json.is_structured()) return false;
  if (depth == 0) return true;
  for (const auto& item : json) {
    if (is_deeper_than(item, depth - 1)) return true;
  }
  return false;
}

// As transformers does: whatever name a message's reasoning came under, templates find it under the two in
// use.
void name_reasoning(Json& message) {
  for (const char* name : reasoning_names) {
    const auto found = message.find(name);
    if (found == message.end() || found->is_null()) continue;
    const Json reasoning = *found;
    if (!message.contains("thinking")) message["thinking"] = reasoning;
    message["reasoning_content"] = reasoning;
    return;
  }
}

Json checked_messages(const Json& messages) {
  if (!messages.is_array())
    throw InputError("\"messages\" is not a list; send [{\"role\", \"content\"}, …]", "messages");
  if (is_deeper_than(messages, json_depth)) {
    throw InputError(fmt::format("\"messages\" is nested deeper than {}; flatten it", json_depth),
                     "messages");
  }
  Json checked = messages;
  for (auto& message : checked) {
    if (!message.is_object()) {
      throw InputError("an item of \"messages\" is not an object; send {\"role\", \"content\"}", "messages");
    }
    name_reasoning(message);
  }
  return checked;
}

}  // namespace

struct ChatTemplate::Handle {
  std::unique_ptr<tandem_template, decltype(&tandem_template_free)> rust;
};

ChatTemplate::ChatTemplate(std::string name, const std::string& source, Json special_tokens)
    : name_(std::move(name)), special_tokens_(std::move(special_tokens)) {
  RustString error;
  auto* parsed = tandem_template_new(source.data(), source.size(), render_fuel, error.out());
  if (parsed == nullptr) {
    throw InputError(fmt::format(
        "{}: the chat template does not parse ({}); correct it, or copy the model's own file again", name_,
        error.str()));
  }
  handle_.reset(new Handle{{parsed, tandem_template_free}});
}

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& folder) {
  const auto config_path = folder / "tokenizer_config.json";
  const auto config = find_json_file(config_path).value_or(nlohmann::json::object());
  const auto jinja_path = folder / "chat_template.jinja";
  if (const auto source = find_file(jinja_path)) {
    return ChatTemplate(jinja_path.string(), *source, special_tokens(config));
  }
  if (const auto source = configured_template(config, config_path.string())) {
    return ChatTemplate(config_path.string(), *source, special_tokens(config));
  }
  return std::nullopt;
}

std::string ChatTemplate::render(const Json& messages, bool add_generation_prompt,
                                 const Json& variables) const {
  if (!variables.is_object() || is_deeper_than(variables, json_depth)) {
    throw InputError(
        fmt::format("the template's variables are not an object, or nested deeper than {}", json_depth));
  }
  // transformers passes tools and documents always, and templates ask whether they are none.
  Json context = {{"tools", nullptr}, {"documents", nullptr}};
  context.update(special_tokens_);
  context.update(variables);
  context["messages"] = checked_messages(messages);
  context["add_generation_prompt"] = add_generation_prompt;
  std::string json;
  try {
    json = context.dump();
  } catch (const Json::exception&) {
    throw InputError("a message is not valid UTF-8; send it encoded as UTF-8", "messages");
  }
  RustString text;
  if (!tandem_template_render(handle_->rust.get(), json.data(), json.size(), text.out())) {
    throw InputError(fmt::format("{}: {}", name_, text.str()), "messages");
  }
  return text.str();
}

}  // namespace tandem::text
