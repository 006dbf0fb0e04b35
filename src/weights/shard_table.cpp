#include "weights/shard_table.h"

#include <fmt/format.h>

namespace tandem::weights {

std::vector<ShardRule> quantised_rules(const ShardRule& rule, int bits, int group) {
  const std::string stem = rule.name.substr(0, rule.name.rfind('.'));
  std::vector<ShardRule> rules(3, rule);
  rules[0].inputs_per_element = 32 / bits;
  rules[0].codes = true;
  rules[1].name = stem + ".scales";
  rules[2].name = stem + ".biases";
  rules[1].inputs_per_element = rules[2].inputs_per_element = group;
  return rules;
}

namespace {

Slice slice_of(const std::string& name, const ShardRule& rule, const parallel::Shard& shard) {
  Slice slice{name, {}, rule.split_axis, {}, rule.codes};
  for (const auto dim : rule.shape) slice.shape.push_back(shard.whole(dim));
  slice.shape.back() /= rule.inputs_per_element;
  if (rule.split_axis < 0) return slice;
  slice.part = shard.part(rule.shape[rule.split_axis]);
  if (rule.split_axis + 1 == static_cast<int>(rule.shape.size())) {
    slice.part = {slice.part.begin / rule.inputs_per_element, slice.part.end / rule.inputs_per_element};
  }
  return slice;
}

}  // namespace

ShardedWeights::ShardedWeights(const Source& source, const std::vector<ShardRule>& rules,
                               const parallel::Shard& shard, int first_layer, int end_layer, OnBytes on_bytes)
    : source_(source), on_bytes_(std::move(on_bytes)) {
  const auto add = [&](const std::string& name, const ShardRule& rule) {
    const auto& slice = slices_[name] = slice_of(name, rule, shard);
    bytes_ += source_.bytes(slice);
    if (rule.split_axis < 0) replicated_bytes_ += source_.bytes(slice);
  };
  for (const auto& rule : rules) {
    const auto star = rule.name.find('*');
    if (star == std::string::npos) {
      add(rule.name, rule);
      continue;
    }
    for (int layer = first_layer; layer < end_layer; ++layer) {
      add(fmt::format("{}{}{}", rule.name.substr(0, star), layer, rule.name.substr(star + 1)), rule);
    }
  }
}

}  // namespace tandem::weights
