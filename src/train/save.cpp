#include "train/save.h"

#include <fmt/format.h>
#include <mlx/allocator.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include "base/error.h"
#include "models/adapter.h"
#include "models/adapter_files.h"
#include "weights/checkpoint.h"
#include "weights/safetensors_writer.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;
namespace fs = std::filesystem;

// The optimizer's steps, the scale of the loss and the steps since that changed.
const char* const counters_name = "training.counters";
constexpr int counters = 3;

// A part of a named whole tensor.
struct Part {
  weights::Slice slice;
  mx::array value;
};

void write_parts(const Trainer& trainer, const std::vector<Part>& parts, const std::optional<fs::path>& file,
                 const std::string& dtype) {
  std::optional<weights::SafetensorsWriter> writer;
  if (file) {
    std::vector<weights::TensorSpec> specs;
    for (const auto& part : parts)
      specs.push_back({part.slice.name, dtype, {part.slice.shape.begin(), part.slice.shape.end()}});
    writer.emplace(*file, specs);
  }
  const mx::Dtype stored = weights::to_mlx("a saved tensor", dtype, weights::Element::number);
  for (const auto& part : parts) {
    mx::array whole = mx::contiguous(mx::astype(trainer.whole(part.slice, part.value), stored));
    whole.eval();
    if (writer) writer->write(part.slice.name, 0, {whole.data<char>(), whole.nbytes()});
  }
  if (writer) writer->finish();
}

weights::Slice optimizer_slice(weights::Slice slice, int index) {
  slice.name += fmt::format(".optimizer{}", index);
  return slice;
}

// Rank 0's whole tensor in the file, this rank's part of it.
mx::array read_part(const Trainer& trainer, const std::optional<weights::SafetensorsFile>& file,
                    const weights::Slice& slice) {
  mx::array whole = mx::zeros({slice.shape.begin(), slice.shape.end()}, mx::float32);
  whole.eval();
  if (file) {
    const auto found = file->tensors().find(slice.name);
    const bool fits = found != file->tensors().end() && found->second.dtype == "F32" &&
                      found->second.end - found->second.begin == whole.nbytes();
    if (!fits) {
      throw InputError(fmt::format("{} has no tensor \"{}\" as this training needs it: it is of another one",
                                   file->path().string(), slice.name));
    }
    file->read(found->second.begin, whole.nbytes(), whole.data<char>());
  }
  return models::part_of(trainer.from_first(whole), slice);
}

}  // namespace

void save_parameters(Trainer& trainer, const std::optional<fs::path>& file, const std::string& dtype) {
  std::vector<Part> parts;
  for (const auto& parameter : trainer.parameters()) parts.push_back({parameter.slice, parameter.value});
  for (const auto& one : trainer.fixed()) parts.push_back({one.slice, one.value});
  write_parts(trainer, parts, file, dtype);
}

void save_state(Trainer& trainer, const std::optional<fs::path>& file) {
  auto& optimizer = trainer.optimizer();
  const auto [scale, scale_steps] = trainer.loss_scale();
  const mx::array counted{static_cast<float>(optimizer.steps()), scale, static_cast<float>(scale_steps)};
  std::vector<Part> parts{{{counters_name, {counters}}, counted}};
  auto state = optimizer.state().begin();
  for (const auto& parameter : trainer.parameters()) {
    parts.push_back({parameter.slice, parameter.value});
    for (int i = 0; optimizer.steps() > 0 && i < optimizer.arrays_a_parameter(); ++i)
      parts.push_back({optimizer_slice(parameter.slice, i), *state++});
  }
  write_parts(trainer, parts, file, "F32");
}

void restore_state(Trainer& trainer, const std::optional<fs::path>& path) {
  std::optional<weights::SafetensorsFile> file;
  if (path) file.emplace(*path);
  auto& optimizer = trainer.optimizer();
  mx::array counted = read_part(trainer, file, {counters_name, {counters}});
  counted.eval();
  const int steps = static_cast<int>(counted.data<float>()[0]);
  trainer.loss_scale() = {counted.data<float>()[1], static_cast<int>(counted.data<float>()[2])};
  std::vector<mx::array> state;
  for (auto& parameter : trainer.parameters()) {
    parameter.value = read_part(trainer, file, parameter.slice);
    for (int i = 0; steps > 0 && i < optimizer.arrays_a_parameter(); ++i)
      state.push_back(read_part(trainer, file, optimizer_slice(parameter.slice, i)));
  }
  optimizer.restore(steps, std::move(state));
}

}  // namespace tandem::train
