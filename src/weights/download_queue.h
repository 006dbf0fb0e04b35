// Downloads files into the hub's cache: several at once, in the caller's thread, each going on where it was
// left, again and again as weights/hub_retry.h decides.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "weights/file_lock.h"
#include "weights/http.h"
#include "weights/hub_client.h"
#include "weights/partial_file.h"

namespace tandem::weights {

struct Download {
  HubFile file;  // with its size and checksum
  std::string url;
  std::filesystem::path blob;  // where it goes
  std::filesystem::path lock;  // held meanwhile, as huggingface_hub does
};

class DownloadQueue {
 public:
  // `progress` stands where the files before these left it.
  DownloadQueue(HttpClient& client, const Hub& hub, const ModelName& model, std::vector<Download> downloads,
                int retries, const PullWatcher& watcher, PullProgress& progress);

  // Until every file is there. Throws what ends all: InputError, DownloadError, PullStopped; what has come by
  // then stays as BLOB.incomplete.
  void run();

 private:
  enum class State { waiting, checking, fetching, done };

  struct Item {
    Download download;
    State state = State::waiting;
    std::chrono::steady_clock::time_point ready{};  // waiting: not before
    std::optional<FileLock> lock;
    std::unique_ptr<PartialFile> part;
    std::uint64_t counted_bytes = 0;   // in progress_.present_bytes
    std::uint64_t furthest_bytes = 0;  // when a failure was last forgiven
    int failures = 0;
    bool in_answer = false;  // the answer's first bytes have come
    bool told_of_lock = false;
  };

  void advance(Item& item);
  void begin(Item& item);
  void fetch(Item& item);
  bool take(Item& item, const HttpHead& head, std::string_view bytes);
  void end(Item& item, HttpResult result);
  void finish(Item& item);
  void settle(Item& item);
  void count(Item& item);

  HttpClient& client_;
  const Hub& hub_;
  const ModelName& model_;
  int retries_;
  const PullWatcher& watcher_;
  PullProgress& progress_;
  std::vector<Item> items_;
  std::size_t active_ = 0;
};

}  // namespace tandem::weights
