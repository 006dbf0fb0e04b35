#include "weights/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/json_lines.h"
#include "base/limits.h"

namespace tandem::weights {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little,
              "safetensors data is read as it stands in the file");

constexpr std::uint64_t length_bytes = 8;
constexpr std::size_t most_dimensions = 8;

// Elements × bytes, nothing where it overflows.
std::optional<std::uint64_t> tensor_bytes(const std::vector<std::int64_t>& shape, int element_bytes) {
  std::uint64_t bytes = static_cast<std::uint64_t>(element_bytes);
  for (const auto size : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(size), &bytes)) return std::nullopt;
  }
  return bytes;
}

std::vector<std::int64_t> parse_shape(const std::string& name, const json& shape) {
  if (!shape.is_array() || shape.size() > most_dimensions) {
    throw InputError(
        fmt::format("tensor \"{}\": its shape is not a list of at most {} sizes", name, most_dimensions));
  }
  std::vector<std::int64_t> sizes;
  for (const auto& size : shape) {
    if (!size.is_number_unsigned() || size.get<std::uint64_t>() > INT32_MAX) {
      throw InputError(
          fmt::format("tensor \"{}\": shape {} has a size that is no number below 2^31", name, shape.dump()));
    }
    sizes.push_back(size.get<std::int64_t>());
  }
  return sizes;
}

TensorInfo parse_tensor(const std::string& name, const json& entry, std::uint64_t data_begin,
                        std::uint64_t file_bytes) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() ||
      !entry.contains("shape") || !entry.contains("data_offsets")) {
    throw InputError(fmt::format("tensor \"{}\" lacks dtype, shape or data_offsets", name));
  }
  TensorInfo info;
  info.dtype = entry["dtype"].get<std::string>();
  info.shape = parse_shape(name, entry["shape"]);
  const auto element_bytes = dtype_bytes(info.dtype);
  if (!element_bytes)
    throw InputError(fmt::format("tensor \"{}\" has the unknown dtype \"{}\"", name, info.dtype));
  const json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    throw InputError(
        fmt::format("tensor \"{}\": data_offsets is {}, not [begin, end]", name, offsets.dump()));
  }
  const auto begin = offsets[0].get<std::uint64_t>();
  const auto end = offsets[1].get<std::uint64_t>();
  const std::uint64_t data_bytes = file_bytes - data_begin;
  if (begin > end || end > data_bytes) {
    throw InputError(
        fmt::format("tensor \"{}\" lies at bytes {} to {} of the data, but the file has {} bytes of data: "
                    "it is truncated or its header is wrong; fetch the file again",
                    name, begin, end, data_bytes));
  }
  const auto expected = tensor_bytes(info.shape, *element_bytes);
  if (!expected || *expected != end - begin) {
    throw InputError(fmt::format("tensor \"{}\": shape {} of {} does not take the {} bytes its offsets give",
                                 name, entry["shape"].dump(), info.dtype, end - begin));
  }
  info.begin = data_begin + begin;
  info.end = data_begin + end;
  return info;
}

void reject_overlaps(const TensorTable& tensors) {
  std::vector<std::pair<const TensorInfo*, const std::string*>> by_begin;
  for (const auto& [name, info] : tensors) {
    if (info.begin != info.end) by_begin.emplace_back(&info, &name);
  }
  std::sort(by_begin.begin(), by_begin.end(),
            [](auto& a, auto& b) { return a.first->begin < b.first->begin; });
  for (std::size_t i = 1; i < by_begin.size(); ++i) {
    if (by_begin[i].first->begin < by_begin[i - 1].first->end) {
      throw InputError(
          fmt::format("tensors \"{}\" and \"{}\" overlap", *by_begin[i - 1].second, *by_begin[i].second));
    }
  }
}

}  // namespace

std::optional<int> dtype_bytes(std::string_view dtype) {
  static constexpr std::array<std::pair<std::string_view, int>, 16> table{{{"F64", 8},
                                                                           {"F32", 4},
                                                                           {"F16", 2},
                                                                           {"BF16", 2},
                                                                           {"F8_E4M3", 1},
                                                                           {"F8_E5M2", 1},
                                                                           {"F8_E8M0", 1},
                                                                           {"I64", 8},
                                                                           {"I32", 4},
                                                                           {"I16", 2},
                                                                           {"I8", 1},
                                                                           {"U64", 8},
                                                                           {"U32", 4},
                                                                           {"U16", 2},
                                                                           {"U8", 1},
                                                                           {"BOOL", 1}}};
  for (const auto& [name, bytes] : table) {
    if (name == dtype) return bytes;
  }
  return std::nullopt;
}

TensorTable parse_safetensors_header(std::string_view header, std::uint64_t data_begin,
                                     std::uint64_t file_bytes) {
  // A depth bound: the format nests three deep, and a parser must not run out of stack on [[[[…
  const auto shallow = [](int depth, json::parse_event_t, json&) {
    if (depth > 4) throw InputError("its header nests deeper than the safetensors format does");
    return true;
  };
  json object;
  try {
    object = json::parse(header, shallow);
  } catch (const json::exception& error) {
    throw InputError(fmt::format("its header is no valid JSON ({})", json_fault(error)));
  }
  if (!object.is_object()) throw InputError("its header is no JSON object");
  TensorTable tensors;
  for (const auto& [name, entry] : object.items()) {
    if (name != "__metadata__") tensors.emplace(name, parse_tensor(name, entry, data_begin, file_bytes));
  }
  reject_overlaps(tensors);
  return tensors;
}

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0)
    throw InputError(fmt::format("cannot open {}: {}", path_.string(), std::strerror(errno)));
  try {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode))
      throw InputError("it is not a regular file");
    const auto file_bytes = static_cast<std::uint64_t>(status.st_size);
    std::uint64_t header_bytes = 0;
    if (file_bytes < length_bytes)
      throw InputError("it is too short to be a safetensors file; fetch the file again");
    read(0, length_bytes, reinterpret_cast<char*>(&header_bytes));
    if (header_bytes > limits::safetensors_header_bytes || header_bytes > file_bytes - length_bytes) {
      throw InputError(
          fmt::format("its header claims {} bytes, more than the file ({} bytes) or the format's limit ({}): "
                      "it is truncated or no safetensors file",
                      header_bytes, file_bytes, limits::safetensors_header_bytes));
    }
    std::string header(header_bytes, '\0');
    read(length_bytes, header_bytes, header.data());
    tensors_ = parse_safetensors_header(header, length_bytes + header_bytes, file_bytes);
  } catch (const InputError& error) {
    ::close(descriptor_);
    throw InputError(fmt::format("{}: {}", path_.string(), error.what()));
  }
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      tensors_(std::move(other.tensors_)) {}

SafetensorsFile::~SafetensorsFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void SafetensorsFile::read(std::uint64_t offset, std::uint64_t bytes, char* target) const {
  while (bytes > 0) {
    const auto wanted = std::min<std::uint64_t>(bytes, limits::read_chunk_bytes);
    const auto got = ::pread(descriptor_, target, wanted, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw InputError(fmt::format("cannot read {}: {}", path_.string(), std::strerror(errno)));
    if (got == 0)
      throw InputError(fmt::format("{} ended while it was read: it is truncated", path_.string()));
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::uint64_t>(got);
    target += got;
  }
}

}  // namespace tandem::weights
