#include "train/save.h"

#include <fmt/format.h>
#include <mlx/allocator.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <utility>

#include "base/error.h"
#include "models/adapter.h"
#include "models/adapter_files.h"
#include "parallel/messages.h"
#include "parallel/tcp_group.h"
#include "train/parts.h"
#include "weights/checkpoint.h"
#include "weights/safetensors_writer.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;
namespace fs = std::filesystem;
using nlohmann::json;

// The optimizer's steps, the scale of the loss and the steps since that changed.
const char* const counters_name = "training.counters";
constexpr int counters = 3;

// A part of a named whole tensor.
struct Part {
  weights::Slice slice;
  mx::array value;
};

bool leads(const Ranks& ranks) { return ranks.place.rank == 0; }

// Tells world rank 0, which has the file, the names and shapes that this stage's leader will send or wants.
void announce(const Ranks& ranks, const std::vector<weights::Slice>& slices) {
  json list = json::array();
  for (const auto& slice : slices) list.push_back({slice.name, slice.shape});
  parallel::send_to(ranks.world, {0}, json::to_cbor(list));
}

std::vector<weights::Slice> hear(const Ranks& ranks, int leader) {
  std::vector<weights::Slice> slices;
  for (const auto& one : json::from_cbor(parallel::receive_from(ranks.world, leader)))
    slices.push_back({one[0].get<std::string>(), one[1].get<std::vector<int>>()});
  return slices;
}

void send(const Ranks& ranks, int peer, const mx::array& x) {
  parallel::exchange(ranks.world, {{peer, std::span<const char>(x.data<char>(), x.nbytes()), std::nullopt}});
}

void receive(const Ranks& ranks, int peer, mx::array& x) {
  parallel::exchange(ranks.world, {{peer, std::nullopt, std::span(x.data<char>(), x.nbytes())}});
}

mx::array empty_on_cpu(const weights::Slice& slice, mx::Dtype dtype) {
  mx::array whole = mx::zeros({slice.shape.begin(), slice.shape.end()}, dtype, mx::Device::cpu);
  whole.eval();
  return whole;
}

std::vector<weights::Slice> slices_of(const std::vector<Part>& parts) {
  std::vector<weights::Slice> slices;
  for (const auto& part : parts) slices.push_back(part.slice);
  return slices;
}

// Of all stages: on world rank 0 what the others announced, in the order of the stages.
std::vector<std::vector<weights::Slice>> announced(const Ranks& ranks,
                                                   const std::vector<weights::Slice>& own) {
  std::vector<std::vector<weights::Slice>> all{own};
  if (ranks.place.stage > 0 && leads(ranks)) announce(ranks, own);
  for (std::size_t stage = 1; ranks.world.rank() == 0 && stage < ranks.place.leaders.size(); ++stage)
    all.push_back(hear(ranks, ranks.place.leaders[stage]));
  return all;
}

// V3's bias of the choice of experts is moved by steps that a half type would swallow.
std::string stored_dtype(const std::string& name, const std::string& dtype) {
  return is_router_bias(name) ? "F32" : dtype;
}

mx::Dtype to_mlx(const std::string& dtype) {
  return weights::to_mlx("a saved tensor", dtype, weights::Element::number);
}

void write_parts(const Trainer& trainer, std::vector<Part> parts, const std::optional<fs::path>& file,
                 const std::string& dtype) {
  const Ranks& ranks = trainer.ranks();
  const auto stages = announced(ranks, slices_of(parts));
  std::optional<weights::SafetensorsWriter> writer;
  if (file) {
    std::vector<weights::TensorSpec> specs;
    for (const auto& slices : stages)
      for (const auto& slice : slices)
        specs.push_back(
            {slice.name, stored_dtype(slice.name, dtype), {slice.shape.begin(), slice.shape.end()}});
    writer.emplace(*file, specs);
  }
  for (auto& part : parts) {
    // What is computed for the file alone is not kept.
    const mx::array value = std::exchange(part.value, mx::array(0.0F));
    const mx::Dtype stored = to_mlx(stored_dtype(part.slice.name, dtype));
    mx::array whole = mx::contiguous(mx::astype(trainer.whole(part.slice, value), stored));
    whole.eval();
    if (writer) writer->write(part.slice.name, 0, {whole.data<char>(), whole.nbytes()});
    if (ranks.place.stage > 0 && leads(ranks)) send(ranks, 0, whole);
  }
  for (std::size_t stage = 1; stage < stages.size(); ++stage) {
    for (const auto& slice : stages[stage]) {
      mx::array whole = empty_on_cpu(slice, to_mlx(stored_dtype(slice.name, dtype)));
      receive(ranks, ranks.place.leaders[stage], whole);
      if (writer) writer->write(slice.name, 0, {whole.data<char>(), whole.nbytes()});
    }
  }
  if (writer) writer->finish();
}

// As float32. InputError where the file has no such tensor of that shape.
mx::array read_whole(const weights::SafetensorsFile& file, const weights::Slice& slice) {
  const auto found = file.tensors().find(slice.name);
  const auto wrong = [&](const std::string& why) {
    return InputError(fmt::format("{} {}: it is of a training with other options, or of another model",
                                  file.path().string(), why));
  };
  if (found == file.tensors().end()) throw wrong(fmt::format("has no tensor \"{}\"", slice.name));
  const auto& shape = found->second.shape;
  if (!std::equal(slice.shape.begin(), slice.shape.end(), shape.begin(), shape.end())) {
    throw wrong(fmt::format("has \"{}\" of shape {}, where {} is needed", slice.name, json(shape).dump(),
                            json(slice.shape).dump()));
  }
  mx::array whole = empty_on_cpu(slice, to_mlx(found->second.dtype));
  file.read(found->second.begin, whole.nbytes(), whole.data<char>());
  if (whole.dtype() != mx::float32) whole = mx::astype(whole, mx::float32, mx::Device::cpu);
  if (!mx::all(mx::isfinite(whole, mx::Device::cpu), mx::Device::cpu).item<bool>())
    throw wrong(fmt::format("has numbers in \"{}\" that are not finite", slice.name));
  return whole;
}

// This rank's parts of tensors in rank 0's file, one after the other. Returns, on rank 0, the slices of every
// stage.
std::vector<std::vector<weights::Slice>> read_parts(const Trainer& trainer,
                                                    const std::optional<weights::SafetensorsFile>& file,
                                                    const std::vector<weights::Slice>& slices,
                                                    const std::function<void(mx::array)>& take) {
  const Ranks& ranks = trainer.ranks();
  auto stages = announced(ranks, slices);
  for (const auto& slice : slices) {
    mx::array whole = file ? read_whole(*file, slice) : empty_on_cpu(slice, mx::float32);
    if (ranks.place.stage > 0 && leads(ranks)) receive(ranks, 0, whole);
    take(models::part_of(trainer.from_first(whole), slice));
  }
  for (std::size_t stage = 1; file && stage < stages.size(); ++stage) {
    for (const auto& slice : stages[stage]) {
      mx::array whole = read_whole(*file, slice);
      send(ranks, ranks.place.leaders[stage], whole);
    }
  }
  return stages;
}

// Of what is in two stages, the first one's is saved.
bool saved_here(const Trainer& trainer, const Parameter& parameter) {
  return !parameter.tied || trainer.ranks().place.first();
}

}  // namespace

void save_parameters(Trainer& trainer, const std::optional<fs::path>& file, const std::string& dtype) {
  std::vector<Part> parts;
  for (const auto& one : trainer.parameters())
    if (saved_here(trainer, one)) parts.push_back({one.slice, one.value});
  for (const auto& one : trainer.fixed()) parts.push_back({one.slice, one.value});
  write_parts(trainer, std::move(parts), file, dtype);
}

void load_parameters(Trainer& trainer, const std::optional<fs::path>& path) {
  std::optional<weights::SafetensorsFile> file;
  if (path) file.emplace(*path);
  auto& parameters = trainer.parameters();
  std::vector<weights::Slice> slices;
  for (const auto& one : parameters) slices.push_back(one.slice);
  std::size_t next = 0;
  const auto stages =
      read_parts(trainer, file, slices, [&](mx::array part) { parameters[next++].value = std::move(part); });
  if (!file) return;
  std::set<std::string, std::less<>> taken;
  for (const auto& of_stage : stages)
    for (const auto& slice : of_stage) taken.insert(slice.name);
  for (const auto& [name, tensor] : file->tensors()) {
    if (!taken.contains(name))
      throw InputError(
          fmt::format("{} adapts \"{}\" too, which this training leaves as it is: give it the "
                      "--num-layers and --lora-keys of that adapter",
                      path->string(), name));
  }
}

void save_state(Trainer& trainer, const std::optional<fs::path>& file) {
  trainer.drop_held_back();
  auto& optimizer = trainer.optimizer();
  const auto [scale, scale_steps] = trainer.loss_scale();
  std::vector<Part> parts;
  if (trainer.ranks().place.first()) {
    parts.push_back(
        {{counters_name, {counters}},
         mx::array{static_cast<float>(optimizer.steps()), scale, static_cast<float>(scale_steps)}});
  }
  for (std::size_t i = 0; i < trainer.parameters().size(); ++i) {
    const auto& one = trainer.parameters()[i];
    if (!saved_here(trainer, one)) continue;
    parts.push_back({one.slice, one.value});
    const auto slices = optimizer.state_slices(i);
    const auto state = optimizer.state(i);
    for (std::size_t k = 0; optimizer.steps() > 0 && k < slices.size(); ++k)
      parts.push_back({slices[k], state[k]});
  }
  write_parts(trainer, std::move(parts), file, "F32");
}

void restore_state(Trainer& trainer, const std::optional<fs::path>& path) {
  std::optional<weights::SafetensorsFile> file;
  if (path) file.emplace(*path);
  int steps = 0;
  read_parts(trainer, file, {{counters_name, {counters}}}, [&](mx::array counted) {
    counted.eval();
    const auto* numbers = counted.data<float>();
    constexpr float most = 1 << 24;  // that a float counts to
    for (int i = 0; i < counters; ++i)
      if (!(numbers[i] >= 0 && numbers[i] <= most))
        throw InputError(fmt::format("the checkpoint's counter {} is {}: it is damaged", i, numbers[i]));
    steps = static_cast<int>(numbers[0]);
    trainer.loss_scale() = {numbers[1], static_cast<int>(numbers[2])};
  });
  auto& optimizer = trainer.optimizer();
  optimizer.restore(steps);
  auto& parameters = trainer.parameters();
  std::vector<weights::Slice> slices;
  std::vector<std::size_t> last_of;  // of each parameter, among the slices
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    slices.push_back(parameters[i].slice);
    if (steps > 0)
      for (auto& slice : optimizer.state_slices(i)) slices.push_back(std::move(slice));
    last_of.push_back(slices.size() - 1);
  }
  std::vector<mx::array> found;
  std::size_t taken = 0, parameter = 0;
  // Each takes the place of the one before, so that no second copy of the model is held.
  read_parts(trainer, file, slices, [&](mx::array part) {
    found.push_back(std::move(part));
    if (taken++ < last_of[parameter]) return;
    parameters[parameter].value = found.front();
    found.erase(found.begin());
    if (steps > 0) optimizer.restore(parameter, found);
    found.clear();
    ++parameter;
  });
}

}  // namespace tandem::train
