// A family's shard table, and the loading of one rank's slices by it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "parallel/shard.h"
#include "weights/source.h"

namespace tandem::weights {

// One row: the tensors of this name ('*' stands for a layer's number) have this shape, are cut along
// `split_axis`
// (-1: every rank holds the whole), and a product with them is followed by `reduce`.
struct ShardRule {
  std::string name;
  std::vector<parallel::Dim> shape;
  int split_axis;
  parallel::Reduce reduce;
  int inputs_per_element = 1;  // of the last axis: quantised weights hold several in one element
  bool codes = false;          // quantised values: uint32
};

// A matrix's row, with its weight in `bits` and groups of `group`, as three: NAME.weight, NAME.scales,
// NAME.biases.
std::vector<ShardRule> quantised_rules(const ShardRule& rule, int bits, int group);

// One rank's tensors by name, each read when it is taken: a model packs one before it takes the next, so that
// no second copy of the model is held.
class ShardedWeights {
 public:
  // The tensors of `rules` for layers [first_layer, end_layer); `source` outlives this. InputError where one
  // is missing.
  ShardedWeights(
      const Source& source, const std::vector<ShardRule>& rules, const parallel::Shard& shard,
      int first_layer, int end_layer, OnBytes on_bytes = [](std::uint64_t) {});

  bool has(const std::string& name) const { return slices_.contains(name); }
  // Reads the tensor. Asserted to be one of the rules'. InputError as Source::read().
  mlx::core::array take(const std::string& name) const { return source_.read(slices_.at(name), on_bytes_); }
  // Bytes of all, and the part of them that every rank holds too.
  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t replicated_bytes() const { return replicated_bytes_; }

 private:
  const Source& source_;
  OnBytes on_bytes_;
  std::map<std::string, Slice> slices_;
  std::uint64_t bytes_ = 0;
  std::uint64_t replicated_bytes_ = 0;
};

}  // namespace tandem::weights
