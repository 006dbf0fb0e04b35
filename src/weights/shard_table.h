// A family's shard table, and the loading of one rank's slices by it.
#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "parallel/shard.h"
#include "weights/checkpoint.h"

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

// One rank's slices by name.
class ShardedWeights {
 public:
  // Asserted to be there: load_shard() has checked.
  const mlx::core::array& at(const std::string& name) const { return tensors_.at(name); }
  bool has(const std::string& name) const { return tensors_.contains(name); }
  // Hands the tensor over: once its taker has it in a form of its own, its memory is free again.
  mlx::core::array take(const std::string& name) { return std::move(tensors_.extract(name).mapped()); }
  // Bytes held, and the part of them that every rank holds too.
  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t replicated_bytes() const { return replicated_bytes_; }

 private:
  friend class ShardLoad;
  std::map<std::string, mlx::core::array> tensors_;
  std::uint64_t bytes_ = 0;
  std::uint64_t replicated_bytes_ = 0;
};

// What one rank is to read; made before anything is read, so that the total is known.
class ShardLoad {
 public:
  // The tensors of `rules` for layers [first_layer, end_layer). InputError where one is missing.
  ShardLoad(const Checkpoint& checkpoint, const std::vector<ShardRule>& rules, const parallel::Shard& shard,
            int first_layer, int end_layer);

  std::uint64_t total_bytes() const { return total_bytes_; }
  ShardedWeights run(const OnBytes& on_bytes) const;

 private:
  struct Item {
    std::string name;
    const ShardRule* rule;
  };
  parallel::Range part(const ShardRule& rule) const;

  const Checkpoint& checkpoint_;
  std::vector<ShardRule> rules_;
  parallel::Shard shard_;
  std::vector<Item> items_;
  std::uint64_t total_bytes_ = 0;
};

}  // namespace tandem::weights
