// Reading config.json: fields with their checks, and the parts that are files of their own. InputError names
// the field, its value and what was expected.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "models/config.h"

namespace tandem::models {

inline constexpr int most_layers = 1000;
inline constexpr int most_width = 1 << 20;
inline constexpr int most_vocabulary = 1 << 22;
inline constexpr int most_context = 1 << 24;
inline constexpr int most_experts = 1 << 16;

// A field that is absent or null counts as missing.
inline const nlohmann::json* find(const nlohmann::json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

inline int integer(const nlohmann::json& object, const char* name, int least, int most) {
  const nlohmann::json* value = find(object, name);
  if (!value) throw InputError(fmt::format("\"{}\" is missing", name));
  if (!value->is_number_integer() || value->get<std::int64_t>() < least ||
      value->get<std::int64_t>() > most) {
    throw InputError(
        fmt::format("\"{}\" is {}; expected a whole number from {} to {}", name, value->dump(), least, most));
  }
  return value->get<int>();
}

inline int integer_or(const nlohmann::json& object, const char* name, int least, int most, int fallback) {
  return find(object, name) ? integer(object, name, least, most) : fallback;
}

inline double positive(const nlohmann::json& object, const char* name, double fallback) {
  const nlohmann::json* value = find(object, name);
  if (!value) return fallback;
  if (!value->is_number() || !(value->get<double>() > 0) || !std::isfinite(value->get<double>())) {
    throw InputError(fmt::format("\"{}\" is {}; expected a number above 0", name, value->dump()));
  }
  return value->get<double>();
}

inline bool boolean_or(const nlohmann::json& object, const char* name, bool fallback) {
  const nlohmann::json* value = find(object, name);
  if (!value) return fallback;
  if (!value->is_boolean())
    throw InputError(fmt::format("\"{}\" is {}; expected true or false", name, value->dump()));
  return value->get<bool>();
}

inline std::string string_or(const nlohmann::json& object, const char* name, const std::string& fallback) {
  const nlohmann::json* value = find(object, name);
  if (!value) return fallback;
  if (!value->is_string())
    throw InputError(fmt::format("\"{}\" is {}; expected a string", name, value->dump()));
  return value->get<std::string>();
}

// Of a model whose context is so many tokens.
RopeConfig parse_rope(const nlohmann::json& config, int context);
weights::Formats parse_formats(const nlohmann::json& config);

}  // namespace tandem::models
