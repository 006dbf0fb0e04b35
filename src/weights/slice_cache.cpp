#include "weights/slice_cache.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "weights/checksum.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;

constexpr int layout = 1;  // of the files; another number, and older ones are not found

// The giver's files, without their paths.
std::string model_part(const RemoteSource& remote) { return remote.identity().substr(0, 16) + "-"; }

// The slices in their order.
std::string slices_part(const std::vector<Slice>& slices) {
  auto list = nlohmann::json::array({layout});
  for (const auto& slice : slices) list.push_back(to_json(slice));
  return sha256_of(list.dump()).substr(0, 16);
}

void warn_not_kept(const std::exception& error) {
  log::warning("its weights are not kept for the next start: {}", error.what());
}

}  // namespace

SliceCache::SliceCache(std::unique_ptr<RemoteSource> remote, fs::path folder)
    : remote_(std::move(remote)), folder_(std::move(folder)) {}

void SliceCache::expect(const std::vector<Slice>& slices) {
  slices_ = slices;
  read_.assign(slices.size(), false);
  std::vector<std::uint64_t> sizes;
  for (const auto& slice : slices) {
    index_[slice.name] = sizes.size();
    sizes.push_back(remote_->bytes(slice));
  }
  file_ = folder_ / (model_part(*remote_) + slices_part(slices));
  open(sizes);
  remote_->expect(kept_ ? std::vector<Slice>{} : slices);
  if (!kept_) start_keeping(sizes);
}

void SliceCache::open(const std::vector<std::uint64_t>& sizes) {
  std::error_code error;
  if (!fs::exists(file_, error)) return;
  try {
    kept_ = std::make_unique<SliceFileReader>(file_, sizes);
  } catch (const InputError& damage) {
    log::warning("{}; it is made anew", damage.what());
  }
}

void SliceCache::start_keeping(const std::vector<std::uint64_t>& sizes) {
  try {
    fs::create_directories(folder_);
    keeping_ = std::make_unique<SliceFileWriter>(file_, sizes);
  } catch (const std::runtime_error& error) {  // InputError, or of the folder
    warn_not_kept(error);
  }
}

mx::array SliceCache::read(const Slice& slice, const OnBytes& on_bytes) const {
  const std::size_t index = index_.at(slice.name);
  if (kept_) {
    auto array = remote_->room_for(slice);
    if (read_kept(index, array)) {
      on_bytes(array.nbytes());
      return array;
    }
  }
  auto array = remote_->read(slice, on_bytes);
  keep(index, array);
  return array;
}

// False where it is damaged; what is not read yet is on its way from the giver then.
bool SliceCache::read_kept(std::size_t index, mx::array& slice) const {
  try {
    kept_->read(index, std::span(slice.data<char>(), slice.nbytes()));
    read_[index] = true;
    return true;
  } catch (const InputError& damage) {
    log::warning("{}; it is deleted, and the weights come from another rank", damage.what());
  }
  kept_.reset();
  std::error_code error;
  fs::remove(file_, error);
  std::vector<Slice> missing;
  for (std::size_t i = 0; i < slices_.size(); ++i) {
    if (!read_[i]) missing.push_back(slices_[i]);
  }
  remote_->expect(missing);
  return false;
}

void SliceCache::keep(std::size_t index, const mx::array& slice) const {
  if (!keeping_) return;
  try {
    keeping_->write(index, {slice.data<char>(), slice.nbytes()});
  } catch (const InputError& error) {
    keeping_.reset();
    warn_not_kept(error);
  }
}

void SliceCache::finish() {
  if (std::exchange(kept_, nullptr)) remote_->expect({});  // the giver need not wait any more
  remote_->finish();
  if (keeping_) finish_keeping();
}

void SliceCache::finish_keeping() {
  try {
    keeping_->finish();
    for (const auto& entry : fs::directory_iterator(folder_)) {
      if (!entry.path().filename().string().starts_with(model_part(*remote_))) fs::remove(entry);
    }
  } catch (const std::runtime_error& error) {  // as above
    warn_not_kept(error);
  }
  keeping_.reset();
}

}  // namespace tandem::weights
