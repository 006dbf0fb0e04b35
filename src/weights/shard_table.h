// A family's shard table, and the loading of one rank's slices by it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "parallel/shard.h"
#include "weights/formats.h"
#include "weights/source.h"

namespace tandem::weights {

// One row: the tensors of this name (the first '*' stands for a layer's number, a second for that of one of
// this rank's experts) have this shape, are cut along `split_axis` (-1: every rank holds the whole), and a
// product with them is followed by `reduce`. Of a tensor of stacked experts, `split_axis` is cut where ranks
// share columns, and axis 0 where they hold whole experts.
struct ShardRule {
  std::string name;
  std::vector<parallel::Dim> shape;
  int split_axis;
  parallel::Reduce reduce;
  std::vector<int> layers;  // that have it; empty: all
};

// A matrix, or a stack of them, as it was stored: dense, or MLX's affine quantisation.
struct StoredMatrix {
  mlx::core::array weight;
  std::optional<mlx::core::array> scales, biases;
  Quantisation quantisation;
};

// One rank's tensors by name, each read when it is taken: a model packs one before it takes the next, so that
// no second copy of the model is held.
class ShardedWeights {
 public:
  // The tensors of `rules` for layers [first_layer, end_layer), those with two axes and more in whatever
  // format the source has them in, which expects them from now on; `source` outlives this. InputError where
  // one is missing.
  ShardedWeights(
      Source& source, const std::vector<ShardRule>& rules, Formats formats, const parallel::Shard& shard,
      int first_layer, int end_layer, OnBytes on_bytes = [](std::uint64_t) {});

  // From now on the tensors are these, what is trained, and nothing is read.
  void bind(std::map<std::string, mlx::core::array> values) { bound_ = std::move(values); }
  bool bound() const { return !bound_.empty(); }

  bool has(const std::string& name) const { return tensors_.contains(name); }
  // In the rules' order.
  const std::vector<std::string>& names() const { return names_; }
  // Where the tensor's part lies in the whole.
  const Slice& slice_of(const std::string& name) const { return tensors_.at(name).slice; }
  // Reads a tensor, or a matrix with what belongs to it. Asserted to be one of the rules'. InputError as
  // Source::read().
  mlx::core::array take(const std::string& name) const;
  StoredMatrix take_matrix(const std::string& name) const;
  parallel::Reduce reduce_of(const std::string& name) const { return tensors_.at(name).reduce; }
  // Bytes of all, and the part of them that every rank holds too.
  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t replicated_bytes() const { return replicated_bytes_; }

 private:
  struct Tensor {
    Slice slice;
    parallel::Reduce reduce;
    std::optional<Slice> scales, biases;  // of a quantised matrix
    std::optional<Slice> fp8_scales;      // whole
    Quantisation quantisation;
    int layer = -1;  // none
  };
  void add(const std::string& name, const ShardRule& rule, const parallel::Shard& shard, int layer);
  void count(const Slice& slice, bool replicated);
  std::vector<Slice> in_order_of_taking() const;
  StoredMatrix take_fp8(const Tensor& tensor) const;

  const Source& source_;
  Formats formats_;
  OnBytes on_bytes_;
  std::map<std::string, mlx::core::array> bound_;
  std::map<std::string, Tensor> tensors_;
  std::vector<std::string> names_;  // in the rules' order
  std::uint64_t bytes_ = 0;
  std::uint64_t replicated_bytes_ = 0;
};

}  // namespace tandem::weights
