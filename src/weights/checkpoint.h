// A model folder's weights, read by slice: model.safetensors, or the shards that model.safetensors.index.json
// names.
#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "parallel/shard.h"
#include "weights/safetensors.h"

namespace tandem::weights {

// Called with the bytes just read.
using OnBytes = std::function<void(std::uint64_t bytes)>;

class Checkpoint {
 public:
  // Opens every file and reads the headers. InputError names what is missing or damaged.
  explicit Checkpoint(const std::filesystem::path& folder);

  bool has(const std::string& name) const { return where_.contains(name); }

  // The slice `part` of `axis` (the whole tensor where axis is -1) as an array in the file's dtype. Reads
  // just these bytes. InputError where the tensor is missing, its shape is not `expected` (of the whole
  // tensor), or its dtype is not F32, F16 or BF16, or, of `codes`, not U32.
  mlx::core::array read(const std::string& name, const std::vector<int>& expected, int axis,
                        parallel::Range part, const OnBytes& on_bytes, bool codes = false) const;

  // The bytes that such a read takes.
  std::uint64_t slice_bytes(const std::string& name, int axis, parallel::Range part) const;

 private:
  struct Place {
    const SafetensorsFile* file;
    const TensorInfo* tensor;
  };
  const Place& place(const std::string& name) const;

  std::filesystem::path folder_;
  std::map<std::string, SafetensorsFile, std::less<>> files_;
  std::map<std::string, Place, std::less<>> where_;
};

}  // namespace tandem::weights
