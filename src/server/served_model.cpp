#include "server/served_model.h"

#include <fmt/format.h>

#include <random>

#include "base/error.h"

namespace tandem::server {

std::vector<int> ServedModel::chat_prompt(const nlohmann::ordered_json& messages,
                                          const nlohmann::ordered_json& variables) const {
  if (!chat_template) {
    throw InputError(
        "the model has no chat template (chat_template.jinja or \"chat_template\" in "
        "tokenizer_config.json): give a plain prompt (run --raw, /v1/completions)",
        "messages");
  }
  // The template writes the special tokens itself.
  return tokenizer.encode(chat_template->render(messages, /*add_generation_prompt=*/true, variables),
                          /*add_special=*/false);
}

engine::Sampling ServedModel::default_sampling(float temperature) const {
  engine::Sampling sampling;
  sampling.temperature = config.advised.temperature.value_or(temperature);
  sampling.top_p = config.advised.top_p.value_or(sampling.top_p);
  sampling.top_k = config.advised.top_k.value_or(sampling.top_k);
  return sampling;
}

ServedModel load_served_model(const std::filesystem::path& folder, const std::string& name) {
  return {name, models::load_config(folder), text::Tokenizer(folder), text::ChatTemplate::load(folder)};
}

std::uint64_t random_seed() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32 | device()) >>
         11;  // exact as a JSON number in any language
}

}  // namespace tandem::server
