#include "cli/demo_model.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <string_view>

#include "base/error.h"

extern "C" {
// demo_model_data.S
extern const char demo_config_begin[], demo_config_end[];
extern const char demo_tokenizer_begin[], demo_tokenizer_end[];
extern const char demo_tokenizer_config_begin[], demo_tokenizer_config_end[];
extern const char demo_chat_template_begin[], demo_chat_template_end[];
extern const char demo_weights_begin[], demo_weights_end[];
}

namespace tandem::cli {
namespace {

namespace fs = std::filesystem;

struct EmbeddedFile {
  const char* name;
  std::string_view bytes;
};

std::array<EmbeddedFile, 5> embedded_files() {
  const auto bytes = [](const char* begin, const char* end) {
    return std::string_view(begin, static_cast<std::size_t>(end - begin));
  };
  return {{{"config.json", bytes(demo_config_begin, demo_config_end)},
           {"tokenizer.json", bytes(demo_tokenizer_begin, demo_tokenizer_end)},
           {"tokenizer_config.json", bytes(demo_tokenizer_config_begin, demo_tokenizer_config_end)},
           {"chat_template.jinja", bytes(demo_chat_template_begin, demo_chat_template_end)},
           {"model.safetensors", bytes(demo_weights_begin, demo_weights_end)}}};
}

// FNV-1a (Fowler, Noll, Vo), 64 bits: names the folder after what is in it, so that a new program does not
// find an old model.
std::uint64_t fingerprint() {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const auto& file : embedded_files()) {
    for (const char byte : file.bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  }
  return hash;
}

bool is_complete(const fs::path& folder) {
  for (const auto& file : embedded_files()) {
    std::error_code error;
    if (fs::file_size(folder / file.name, error) != file.bytes.size() || error) return false;
  }
  return true;
}

void write_file(const fs::path& path, std::string_view bytes) {
  std::ofstream stream(path, std::ios::binary);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  stream.close();
  if (!stream)
    throw InputError(
        fmt::format("cannot write {}: is the disk full? XDG_CACHE_HOME names another folder", path.string()));
}

}  // namespace

fs::path unpack_demo_model(const fs::path& cache) {
  const fs::path folder = cache / fmt::format("demo-model-{:016x}", fingerprint());
  if (is_complete(folder)) return folder;
  // Written beside and renamed, so that a folder of that name is whole.
  const fs::path part = cache / fmt::format("demo-model.part-{}", ::getpid());
  std::error_code error;
  fs::create_directories(part, error);
  if (error)
    throw InputError(fmt::format("cannot make the folder {}: {}; XDG_CACHE_HOME names another", part.string(),
                                 error.message()));
  try {
    for (const auto& file : embedded_files()) write_file(part / file.name, file.bytes);
  } catch (...) {
    fs::remove_all(part, error);
    throw;
  }
  fs::remove_all(folder, error);
  fs::rename(part, folder, error);
  if (error && !is_complete(folder)) {  // unless another process was faster
    const auto why = error.message();
    fs::remove_all(part, error);
    throw InputError(fmt::format("cannot make the folder {}: {}", folder.string(), why));
  }
  fs::remove_all(part, error);
  return folder;
}

}  // namespace tandem::cli
