#include "weights/formats.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace tandem::weights {

Quantisation Formats::of(const std::string& matrix) const {
  if (const auto found = own.find(matrix); found != own.end()) return found->second;
  if (all) return *all;
  throw InputError(fmt::format("\"{}\" has scales, but config.json has no \"quantization\"", matrix));
}

int Formats::largest_group(const std::string& ending) const {
  int group = all ? all->group : 1;
  for (const auto& [matrix, quantisation] : own) {
    if (matrix.ends_with(ending)) group = std::max(group, quantisation.group);
  }
  return group;
}

}  // namespace tandem::weights
