// A model folder's weights, read by slice: model.safetensors, or the shards that model.safetensors.index.json
// names.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "weights/safetensors.h"
#include "weights/source.h"

namespace tandem::weights {

// Whether the folder has weights.
bool is_checkpoint(const std::filesystem::path& folder);

// MLX's type of a tensor that is stored as `dtype` and read as `element`. InputError, where there is none,
// starts with `where`.
mlx::core::Dtype to_mlx(const std::string& where, const std::string& dtype, Element element);

// Of the slice of a tensor.
std::uint64_t slice_bytes(const TensorInfo& info, const Slice& slice);

class Checkpoint : public Source {
 public:
  // Opens every file and reads the headers. InputError names what is missing or damaged.
  explicit Checkpoint(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  bool has(const std::string& name) const override { return where_.contains(name); }

  // How a tensor stands in its file. InputError where there is none of this name.
  const TensorInfo& info(const std::string& name) const { return *place(name).tensor; }
  // The files read, sorted.
  std::vector<std::filesystem::path> files() const;
  // Of all files; the places are those in each one's own.
  TensorTable tensors() const;
  // In 64 digits: other ones once a file has changed. A file of the hub's cache goes by the checksum in its
  // blob's name, any other by its size and the time of its last change, so that nothing is read.
  std::string identity() const;

  std::uint64_t bytes(const Slice& slice) const override;
  // In the file's dtype. Reads just the slice's bytes. InputError where the tensor is missing, the whole one
  // has another shape, or its dtype is not that of the slice's element.
  mlx::core::array read(const Slice& slice, const OnBytes& on_bytes) const override;

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
