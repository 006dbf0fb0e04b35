#include "weights/download_queue.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::weights {
namespace {

using Clock = std::chrono::steady_clock;

// Whether an answer's bytes begin where we asked it to: "bytes 100-199/200".
bool begins_at(const HttpHead& head, std::uint64_t offset) {
  return head.field("content-range").starts_with(fmt::format("bytes {}-", offset));
}

}  // namespace

DownloadQueue::DownloadQueue(HttpClient& client, const Hub& hub, const ModelName& model,
                             std::vector<Download> downloads, int retries, const PullWatcher& watcher,
                             PullProgress& progress)
    : client_(client), hub_(hub), model_(model), retries_(retries), watcher_(watcher), progress_(progress) {
  for (auto& download : downloads) {
    items_.emplace_back();
    items_.back().download = std::move(download);
  }
}

void DownloadQueue::run() {
  const auto is_done = [](const Item& item) { return item.state == State::done; };
  while (!std::all_of(items_.begin(), items_.end(), is_done)) {
    if (watcher_.stopped()) throw PullStopped{};
    for (auto& item : items_) advance(item);
    const bool busy = std::any_of(items_.begin(), items_.end(),
                                  [](const Item& item) { return item.state == State::checking; });
    client_.poll(busy ? std::chrono::milliseconds(0) : limits::hub_poll);
    watcher_.progress(progress_);
  }
}

void DownloadQueue::advance(Item& item) {
  if (item.state == State::waiting && active_ < limits::hub_connections && item.ready <= Clock::now()) {
    begin(item);
  }
  if (item.state != State::checking || !item.part->check_some()) return;
  if (item.part->whole()) {
    finish(item);
  } else {
    fetch(item);
  }
}

void DownloadQueue::begin(Item& item) {
  if (!item.lock) item.lock = FileLock::try_lock(item.download.lock);
  if (!item.lock) {
    if (!item.told_of_lock) {
      watcher_.note(fmt::format("{}: another program downloads it; waiting", item.download.file.path));
    }
    item.told_of_lock = true;
    item.ready = Clock::now() + limits::hub_lock_poll;
    return;
  }
  ++active_;
  if (!item.part) {
    std::error_code error;
    const auto& download = item.download;
    if (std::filesystem::file_size(download.blob, error) == *download.file.size && !error) {
      return settle(item);  // whoever held the lock has brought it
    }
    item.part = std::make_unique<PartialFile>(download.blob, *download.file.size, *download.file.checksum);
    item.furthest_bytes = item.part->bytes();
    count(item);
  }
  item.state = State::checking;
}

void DownloadQueue::fetch(Item& item) {
  item.state = State::fetching;
  HttpRequest request;
  request.url = item.download.url;
  request.offset = item.part->bytes();
  request.on_body = [this, &item](const HttpHead& head, std::string_view bytes) {
    return take(item, head, bytes);
  };
  request.on_end = [this, &item](const HttpResult& result) { end(item, result); };
  client_.start(std::move(request));
}

bool DownloadQueue::take(Item& item, const HttpHead& head, std::string_view bytes) {
  const auto offset = item.part->bytes();
  // 200: the server knows no ranges, so it is all of the file, from its start.
  if (!item.in_answer && offset > 0 && (head.status != 206 || !begins_at(head, offset))) {
    item.part->restart();
    if (head.status == 206) return false;
  }
  item.in_answer = true;
  const bool fits = item.part->append(bytes);
  progress_.fetched_bytes += bytes.size();
  count(item);
  if (fits) return true;
  item.part->restart();
  throw DownloadError(fmt::format("{}: the server sends more than its {} bytes", item.download.file.path,
                                  *item.download.file.size));
}

void DownloadQueue::end(Item& item, HttpResult result) {
  item.in_answer = false;
  if (item.part->whole()) return finish(item);
  const auto& path = item.download.file.path;
  if (item.part->bytes() >= item.furthest_bytes + limits::hub_progress_bytes) {
    item.failures = 0;
    item.furthest_bytes = item.part->bytes();
  }
  if (result.failure == HttpFailure::refused ||
      (result.failure == HttpFailure::none && result.head.status / 100 == 2)) {
    result.failure = HttpFailure::cut;
    result.detail = fmt::format("{} of {} bytes came", item.part->bytes(), *item.download.file.size);
  }
  const auto decision = decide(result, item.failures++, retries_, /*was_reached=*/true);
  if (decision.step != NextStep::retry && decision.step != NextStep::start_over) {
    throw_failure(result, hub_, model_, path);
  }
  if (decision.step == NextStep::start_over) item.part->restart();
  count(item);
  watcher_.note(fmt::format("{}: {}; again from {} in {:.1f} s", path, describe(result), item.part->bytes(),
                            std::chrono::duration<double>(decision.wait).count()));
  item.ready = Clock::now() + decision.wait;
  item.state = State::waiting;
  --active_;
}

void DownloadQueue::finish(Item& item) {
  item.part->finish();
  settle(item);
}

void DownloadQueue::settle(Item& item) {
  progress_.present_bytes += *item.download.file.size - item.counted_bytes;
  item.part.reset();
  item.lock.reset();
  item.state = State::done;
  --active_;
  ++progress_.present_files;
  watcher_.finished(item.download.file);
}

void DownloadQueue::count(Item& item) {
  progress_.present_bytes += item.part->bytes() - item.counted_bytes;
  item.counted_bytes = item.part->bytes();
}

}  // namespace tandem::weights
