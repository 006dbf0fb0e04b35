#include "weights/safetensors_writer.h"

#include <cassert>
#include <nlohmann/json.hpp>

#include "weights/safetensors.h"

namespace tandem::weights {
namespace {

constexpr std::size_t alignment = 8;  // of the data, as the format's own writer has it
constexpr std::size_t length_bytes = 8;

std::string header_of(const std::vector<TensorSpec>& tensors) {
  nlohmann::ordered_json header{{"__metadata__", {{"format", "mlx"}}}};
  std::uint64_t begin = 0;
  for (const auto& tensor : tensors) {
    const std::uint64_t end = begin + tensor.bytes();
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + alignment - 1) / alignment * alignment, ' ');
  return text;
}

}  // namespace

std::uint64_t TensorSpec::bytes() const {
  const auto element = dtype_bytes(dtype);
  assert(element);
  auto count = static_cast<std::uint64_t>(*element);
  for (const auto size : shape) count *= static_cast<std::uint64_t>(size);
  return count;
}

std::uint64_t SafetensorsWriter::file_bytes(const std::vector<TensorSpec>& tensors) {
  std::uint64_t bytes = length_bytes + header_of(tensors).size();
  for (const auto& tensor : tensors) bytes += tensor.bytes();
  return bytes;
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     const std::vector<TensorSpec>& tensors)
    : file_(path) {
  const std::string header = header_of(tensors);
  const std::uint64_t length = header.size();
  file_.write(0, {reinterpret_cast<const char*>(&length), length_bytes});
  file_.write(length_bytes, header);
  for (const auto& tensor : tensors) {
    const Place place{length_bytes + length + missing_bytes_, tensor.bytes()};
    [[maybe_unused]] const bool is_new = places_.emplace(tensor.name, place).second;
    assert(is_new);
    missing_bytes_ += place.bytes;
  }
}

void SafetensorsWriter::write(const std::string& tensor, std::uint64_t offset, std::string_view bytes) {
  const Place& place = places_.at(tensor);
  assert(offset + bytes.size() <= place.bytes);
  file_.write(place.begin + offset, bytes);
  missing_bytes_ -= bytes.size();
}

void SafetensorsWriter::finish() {
  assert(missing_bytes_ == 0);
  file_.finish();
}

}  // namespace tandem::weights
