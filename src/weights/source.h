// Where a model's tensors come from, slice by slice: a folder (checkpoint.h), another rank (remote_source.h,
// slice_cache.h) or random numbers (random_source.h).
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "parallel/shard.h"

namespace tandem::weights {

// What a tensor holds: numbers in F32, F16 or BF16, MLX's quantised values in U32, or numbers in F8_E4M3.
enum class Element { number, codes, fp8 };

// A tensor, or a part of it.
struct Slice {
  std::string name;
  std::vector<int> shape;  // of the whole tensor
  int axis = -1;           // that is cut; -1: the whole tensor
  parallel::Range part;    // of that axis
  Element element = Element::number;

  mlx::core::Shape part_shape() const;
};

// The slice's part of the whole tensor, not evaluated.
mlx::core::array sliced(const mlx::core::array& whole, const Slice& slice, mlx::core::StreamOrDevice s = {});

// A slice as it lies in its row-major tensor: `runs` pieces of `run` elements, `stride` apart, from `first`.
struct Pieces {
  std::uint64_t first = 0, run = 0, stride = 0, runs = 1;
};
Pieces pieces_of(const Slice& slice);

// Called with the bytes just read: one call at a time, perhaps in another thread.
using OnBytes = std::function<void(std::uint64_t bytes)>;

// An array that is to be filled. InputError, which names `what`, where there is no memory for it.
mlx::core::array allocated(const mlx::core::Shape& shape, mlx::core::Dtype dtype, const std::string& what);
// Of the slice's part.
mlx::core::array allocated(const Slice& slice, mlx::core::Dtype dtype);

class Source {
 public:
  virtual ~Source() = default;
  virtual bool has(const std::string& name) const = 0;
  // The bytes that reading the slice takes. InputError where there is no such tensor.
  virtual std::uint64_t bytes(const Slice& slice) const = 0;
  // What will be read, each once, in about this order.
  virtual void expect(const std::vector<Slice>&) {}
  // The slice, in the source's dtype; F8_E4M3 as uint8. InputError names the tensor that is not as asked for.
  virtual mlx::core::array read(const Slice& slice, const OnBytes& on_bytes) const = 0;
  // Nothing more will be read.
  virtual void finish() {}
  // Of slices, that came from another rank; asked after finish().
  virtual std::uint64_t received_bytes() const { return 0; }
};

}  // namespace tandem::weights
