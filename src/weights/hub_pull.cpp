#include "weights/hub_pull.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <thread>

#include "base/error.h"
#include "base/limits.h"
#include "weights/download_queue.h"
#include "weights/file_lock.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;

void check(const std::error_code& error, const char* what, const fs::path& path) {
  if (error) {
    throw InputError(fmt::format("cannot {} {}: {}; HF_HOME names another cache folder", what, path.string(),
                                 error.message()));
  }
}

void make_folders(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  check(error, "make the folder", folder);
}

FileLock wait_for_lock(const HubFolder& folder, const ModelName& model, const PullWatcher& watcher) {
  const auto end = std::chrono::steady_clock::now() + limits::hub_lock;
  for (bool told = false;; told = true) {
    if (auto lock = FileLock::try_lock(pull_lock(folder))) return std::move(*lock);
    if (!told) watcher.note(fmt::format("another tandem pulls {}; waiting for it", model.id()));
    if (watcher.stopped()) throw PullStopped{};
    if (std::chrono::steady_clock::now() > end) {
      throw InputError(
          fmt::format("another tandem pulls {} for {} hours now", model.id(), limits::hub_lock.count()));
    }
    std::this_thread::sleep_for(limits::hub_lock_poll);
  }
}

std::uint64_t size_or_zero(const fs::path& file) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  return error ? 0 : size;
}

fs::path blob_of(const HubFolder& folder, const HubFile& file) { return folder.blobs() / file.checksum->hex; }

// The files whose blobs are not there, each blob once; the rest is counted as present.
std::vector<Download> missing_files(const PullRequest& request, const HubFolder& folder,
                                    const std::string& commit, const std::vector<HubFile>& files,
                                    PullProgress& progress) {
  std::vector<Download> downloads;
  std::set<std::string> blobs;
  for (const auto& file : files) {
    if (!blobs.insert(file.checksum->hex).second) continue;
    ++progress.files;
    progress.total_bytes += *file.size;
    const auto blob = blob_of(folder, file);
    std::error_code error;
    if (fs::exists(blob, error) && size_or_zero(blob) == *file.size) {
      ++progress.present_files;
      progress.present_bytes += *file.size;
      continue;
    }
    downloads.push_back({file, file_url(request.hub.endpoint, request.model, commit, file.path), blob,
                         folder.locks() / (file.checksum->hex + ".lock")});
  }
  return downloads;
}

void check_space(const HubFolder& folder, const std::vector<Download>& downloads) {
  std::uint64_t needed = 0;
  for (const auto& download : downloads) {
    const auto size = *download.file.size;
    needed += size - std::min(size, size_or_zero(download.blob.string() + ".incomplete"));
  }
  std::error_code error;
  const auto space = fs::space(folder.blobs(), error);
  if (error || needed <= space.available) return;
  throw InputError(
      fmt::format("not enough room in {}: {} bytes are needed, {} are free; free some, or set HF_HOME to a "
                  "folder on another disk",
                  folder.blobs().string(), needed, space.available));
}

void make_link(const fs::path& target, const fs::path& link) {
  make_folders(link.parent_path());
  std::error_code error;
  fs::create_symlink(target.lexically_relative(link.parent_path()), link, error);
  check(error, "make the link", link);
}

// Whole at once, by renaming, where there is no snapshot of the commit yet; else its missing links are added.
fs::path link_snapshot(const HubFolder& folder, const std::string& commit,
                       const std::vector<HubFile>& files) {
  const auto snapshot = folder.snapshots() / commit;
  const auto part = folder.path / "snapshots.part";
  std::error_code error;
  fs::remove_all(part, error);
  // At the depth of the snapshot, so that the links hold.
  for (const auto& file : files) make_link(blob_of(folder, file), part / commit / file.path);
  make_folders(folder.snapshots());
  if (!fs::exists(snapshot, error)) {
    fs::rename(part / commit, snapshot, error);
    check(error, "make the folder", snapshot);
  } else {
    for (const auto& file : files) {
      make_folders((snapshot / file.path).parent_path());
      fs::rename(part / commit / file.path, snapshot / file.path, error);
      check(error, "make the link", snapshot / file.path);
    }
  }
  fs::remove_all(part, error);
  return snapshot;
}

void write_reference(const HubFolder& folder, const std::string& revision, const std::string& commit) {
  if (revision == commit) return;
  const auto file = folder.refs() / revision;
  const auto part = folder.path / "ref.part";
  make_folders(file.parent_path());
  std::ofstream stream(part, std::ios::binary);
  stream << commit;
  stream.close();
  std::error_code error;
  if (!stream) error = std::make_error_code(std::errc::io_error);
  check(error, "write", part);
  fs::rename(part, file, error);
  check(error, "write", file);
}

}  // namespace

PullReport pull(const PullRequest& request, const PullWatcher& watcher) {
  const HubFolder folder = hub_folder(request.hub_cache, request.model);
  const FileLock lock = wait_for_lock(folder, request.model, watcher);
  HttpClient client({request.hub.token, request.hub.ca_file});
  const auto listing = fetch_listing(client, request.hub, request.model, request.retries, watcher);
  auto files = select_files(listing, request.include, request.model);
  fetch_missing_checksums(client, request.hub, request.model, listing.commit, files, request.retries,
                          watcher);

  make_folders(folder.blobs());
  PullReport report{listing.commit};
  auto downloads = missing_files(request, folder, listing.commit, files, report.progress);
  check_space(folder, downloads);
  watcher.planned(listing.commit, files, report.progress);
  DownloadQueue(client, request.hub, request.model, std::move(downloads), request.retries, watcher,
                report.progress)
      .run();
  report.folder = link_snapshot(folder, listing.commit, files);
  write_reference(folder, request.model.revision_or_main(), listing.commit);
  return report;
}

}  // namespace tandem::weights
