#include "models/config_fields.h"

namespace tandem::models {
namespace {

using nlohmann::json;

weights::Quantisation parse_bits_and_group(const json& given, const std::string& where) {
  const weights::Quantisation result{integer(given, "bits", 1, 32), integer(given, "group_size", 1, 1 << 20)};
  if (result.bits != 4 && result.bits != 8) {
    throw InputError(fmt::format("{} has {} bits; this version reads 4 and 8", where, result.bits));
  }
  if (result.group != 32 && result.group != 64 && result.group != 128) {
    throw InputError(
        fmt::format("{} has groups of {}; this version reads 32, 64 and 128", where, result.group));
  }
  const std::string mode = string_or(given, "mode", "affine");
  if (mode != "affine")
    throw InputError(fmt::format("{} has the mode \"{}\"; this version reads affine", where, mode));
  return result;
}

// DeepSeek's FP8, in "quantization_config".
int parse_fp8_block(const json& given) {
  if (!given.is_object())
    throw InputError(fmt::format("\"quantization_config\" is {}; give an object", given.dump()));
  const std::string method = string_or(given, "quant_method", "");
  if (method != "fp8") {
    throw InputError(
        fmt::format("\"quantization_config\" has the method \"{}\", which this version does not read; give "
                    "DeepSeek's fp8, "
                    "MLX's affine quantization, or a bf16, f16 or f32 checkpoint",
                    method));
  }
  if (const auto kind = string_or(given, "fmt", "e4m3"); kind != "e4m3")
    throw InputError(fmt::format("\"quantization_config\" has fp8 in {}; this version reads e4m3", kind));
  const json* block = find(given, "weight_block_size");
  if (!block || !block->is_array() || block->size() != 2 || (*block)[0] != (*block)[1] ||
      !(*block)[0].is_number_integer() || (*block)[0] < 1 || (*block)[0] > most_width) {
    throw InputError(
        fmt::format("\"weight_block_size\" is {}; expected two equal numbers, such as [128, 128]",
                    block ? block->dump() : "missing"));
  }
  return (*block)[0].get<int>();
}

}  // namespace

// "quantization" of mlx-community, with the exceptions that it makes for single matrices; or the
// "quantization_config" of DeepSeek's FP8.
weights::Formats parse_formats(const json& config) {
  weights::Formats formats;
  const json* given = find(config, "quantization");
  if (!given) {
    if (const json* other = find(config, "quantization_config")) formats.fp8_block = parse_fp8_block(*other);
    return formats;
  }
  if (!given->is_object())
    throw InputError(fmt::format("\"quantization\" is {}; give an object", given->dump()));
  formats.all = parse_bits_and_group(*given, "\"quantization\"");
  for (const auto& [name, value] : given->items()) {
    if (value.is_object())
      formats.own[name] = parse_bits_and_group(value, fmt::format("\"quantization\" of \"{}\"", name));
  }
  return formats;
}

}  // namespace tandem::models
