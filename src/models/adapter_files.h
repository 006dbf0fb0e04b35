// Low-rank adapters as mlx-lm's files have them: adapters.safetensors with NAME.lora_a [in, rank],
// NAME.lora_b [rank, out] and, of DoRA, NAME.m [out]; for a stack of experts lora_a [E, rank, in] and lora_b
// [E, out, rank]; their kind and scale in adapter_config.json.
#pragma once

#include <mlx/array.h>

#include <filesystem>
#include <set>
#include <string>

#include "weights/safetensors.h"
#include "weights/source.h"

namespace tandem::models {

// The slice of a whole tensor, evaluated.
mlx::core::array part_of(const mlx::core::array& whole, const weights::Slice& slice);

class AdapterFiles {
 public:
  static constexpr const char* down_ending = ".lora_a";
  static constexpr const char* up_ending = ".lora_b";
  static constexpr const char* magnitude_ending = ".m";

  // InputError, here and below, names the file and what is wrong.
  explicit AdapterFiles(const std::filesystem::path& folder);

  float scale() const { return kind_.scale; }           // of every adapter
  bool magnitudes() const { return kind_.magnitudes; }  // whether each has some: DoRA
  // Linear products are named by their weights, without ".weight".
  bool has(const std::string& linear) const;
  int rank(const std::string& linear) const;
  std::set<std::string> linears() const;
  // InputError where the tensor has not the slice's whole shape.
  mlx::core::array read(const weights::Slice& slice) const;
  // InputError where a tensor is for no product among `linears`.
  void check_all(const std::set<std::string>& linears) const;

 private:
  struct Kind {
    float scale;
    bool magnitudes;
  };
  static Kind read_kind(const std::filesystem::path& file);
  // The product that a tensor belongs to; empty where the name is none of an adapter's.
  std::string linear_of(const std::string& tensor) const;

  Kind kind_;
  weights::SafetensorsFile file_;
};

}  // namespace tandem::models
