// All that the conductor knows of a model: its texts, no tensor.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"
#include "models/config.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace tandem::server {

struct ServedModel {
  std::string name;  // as the user gave it, without a path
  models::ModelConfig config;
  text::Tokenizer tokenizer;
  std::optional<text::ChatTemplate> chat_template;

  // The prompt ids of a conversation. InputError where the model has no chat template, or the template
  // refuses.
  std::vector<int> chat_prompt(
      const nlohmann::ordered_json& messages,
      const nlohmann::ordered_json& variables = nlohmann::ordered_json::object()) const;
  // What the model's makers advise (generation_config.json), `temperature` where they say nothing.
  engine::Sampling default_sampling(float temperature) const;
};

// InputError names the file that is missing or wrong.
ServedModel load_served_model(const std::filesystem::path& folder, const std::string& name);

// A seed for a request that gives none.
std::uint64_t random_seed();

}  // namespace tandem::server
