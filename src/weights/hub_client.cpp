#include "weights/hub_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <thread>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::weights {
namespace {

using Clock = std::chrono::steady_clock;

void check_stopped(const PullWatcher& watcher) {
  if (watcher.stopped()) throw PullStopped{};
}

void wait(std::chrono::milliseconds time, const PullWatcher& watcher) {
  for (const auto end = Clock::now() + time; Clock::now() < end;) {
    check_stopped(watcher);
    std::this_thread::sleep_for(std::min<Clock::duration>(limits::hub_poll, end - Clock::now()));
  }
}

// One request to its end, retried. `body` gets the answer's bytes.
HttpResult fetch(HttpClient& client, const Hub& hub, const ModelName& model, const HttpRequest& request,
                 std::string& body, const std::string& what, int retries, const PullWatcher& watcher) {
  for (int failures = 0;; ++failures) {
    HttpRequest attempt = request;
    std::optional<HttpResult> result;
    body.clear();
    attempt.on_body = [&body](const HttpHead&, std::string_view bytes) {
      body += bytes;
      return body.size() <= limits::hub_listing_bytes;
    };
    attempt.on_end = [&result](const HttpResult& end) { result = end; };
    client.start(std::move(attempt));
    while (!result) {
      check_stopped(watcher);
      client.poll(limits::hub_poll);
    }
    if (result->failure == HttpFailure::refused) {
      throw DownloadError(
          fmt::format("the hub's list of files is longer than {} bytes", limits::hub_listing_bytes));
    }
    const auto decision = decide(*result, failures, retries, /*was_reached=*/!what.empty());
    if (decision.step == NextStep::done) return *result;
    if (decision.step == NextStep::give_up) throw_failure(*result, hub, model, what);
    watcher.note(fmt::format("{}; again in {:.1f} s", describe(*result),
                             std::chrono::duration<double>(decision.wait).count()));
    wait(decision.wait, watcher);
  }
}

std::optional<std::uint64_t> number(const std::string& text) {
  std::uint64_t value = 0;
  const auto end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  if (text.empty() || parsed.ec != std::errc{} || parsed.ptr != end) return std::nullopt;
  return value;
}

}  // namespace

HubListing fetch_listing(HttpClient& client, const Hub& hub, const ModelName& model, int retries,
                         const PullWatcher& watcher) {
  std::string body;
  HttpRequest request;
  request.url = listing_url(hub.endpoint, model);
  fetch(client, hub, model, request, body, "", retries, watcher);
  return listing_from_json(nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false));
}

void fetch_missing_checksums(HttpClient& client, const Hub& hub, const ModelName& model,
                             const std::string& commit, std::vector<HubFile>& files, int retries,
                             const PullWatcher& watcher) {
  for (auto& file : files) {
    if (file.size && file.checksum) continue;
    HttpRequest request;
    request.url = file_url(hub.endpoint, model, commit, file.path);
    request.head_only = true;
    std::string body;
    const auto head = fetch(client, hub, model, request, body, file.path, retries, watcher).head;
    // Those of a large file stand beside the redirect to where it lies.
    const auto linked = head.field("x-linked-etag");
    file.checksum = checksum_from_etag(linked.empty() ? head.field("etag") : linked);
    file.size = number(head.field(linked.empty() ? "content-length" : "x-linked-size"));
    if (!file.size || !file.checksum || *file.size > limits::hub_file_bytes) {
      throw DownloadError(fmt::format("{} tells no size and checksum for {}; nothing is downloaded unchecked",
                                      hub.endpoint, file.path));
    }
  }
}

}  // namespace tandem::weights
