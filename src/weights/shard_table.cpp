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

ShardLoad::ShardLoad(const Checkpoint& checkpoint, const std::vector<ShardRule>& rules,
                     const parallel::Shard& shard, int first_layer, int end_layer)
    : checkpoint_(checkpoint), rules_(rules), shard_(shard) {
  for (const auto& rule : rules_) {
    const auto star = rule.name.find('*');
    if (star == std::string::npos) {
      items_.push_back({rule.name, &rule});
      continue;
    }
    for (int layer = first_layer; layer < end_layer; ++layer) {
      items_.push_back(
          {fmt::format("{}{}{}", rule.name.substr(0, star), layer, rule.name.substr(star + 1)), &rule});
    }
  }
  for (const auto& item : items_) {
    total_bytes_ += checkpoint_.slice_bytes(item.name, item.rule->split_axis, part(*item.rule));
  }
}

parallel::Range ShardLoad::part(const ShardRule& rule) const {
  if (rule.split_axis < 0) return {};
  parallel::Range part = shard_.part(rule.shape[rule.split_axis]);
  if (rule.split_axis + 1 == static_cast<int>(rule.shape.size())) {
    part = {part.begin / rule.inputs_per_element, part.end / rule.inputs_per_element};
  }
  return part;
}

ShardedWeights ShardLoad::run(const OnBytes& on_bytes) const {
  ShardedWeights weights;
  for (const auto& [name, rule] : items_) {
    std::vector<int> shape;
    for (const auto dim : rule->shape) shape.push_back(shard_.whole(dim));
    shape.back() /= rule->inputs_per_element;
    auto tensor = checkpoint_.read(name, shape, rule->split_axis, part(*rule), on_bytes, rule->codes);
    weights.bytes_ += tensor.nbytes();
    if (rule->split_axis < 0) weights.replicated_bytes_ += tensor.nbytes();
    weights.tensors_.emplace(name, std::move(tensor));
  }
  return weights;
}

}  // namespace tandem::weights
