#include "weights/hub_retry.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::weights {
namespace {

using std::chrono::milliseconds;

milliseconds backoff(int failures) {
  auto wait = limits::hub_backoff;
  for (int i = 0; i < failures && wait < limits::hub_backoff_most; ++i) wait *= 2;
  return std::min(wait, limits::hub_backoff_most);
}

bool asks_for_too_long(const HttpResult& result) {
  return result.retry_after && *result.retry_after > limits::hub_retry_after;
}

bool passes_by_itself(int status) { return status == 408 || status == 429 || status >= 500; }

NextStep step_after_failure(HttpFailure failure, bool was_reached) {
  switch (failure) {
    case HttpFailure::cut:
      return NextStep::retry;
    case HttpFailure::cannot_resolve:
    case HttpFailure::cannot_connect:
    case HttpFailure::tls:
      return was_reached ? NextStep::retry : NextStep::give_up;
    default:
      return NextStep::give_up;
  }
}

NextStep step_after_answer(const HttpResult& result) {
  const int status = result.head.status;
  if (status / 100 == 2 || status / 100 == 3) return NextStep::done;
  if (status == 416) return NextStep::start_over;
  if (passes_by_itself(status) && !asks_for_too_long(result)) return NextStep::retry;
  return NextStep::give_up;
}

std::string revision_text(const ModelName& model) {
  return fmt::format("{} (revision {})", model.id(), model.revision_or_main());
}

// 401 and 403 of the hub itself. It answers 401 for what does not exist too, lest one could ask for names.
[[noreturn]] void throw_refused(const HttpResult& result, const Hub& hub, const ModelName& model) {
  const auto page = hub.endpoint + "/" + model.id();
  const bool gated = result.head.field("x-error-code") == "GatedRepo";
  if (gated || (result.head.status == 403 && !hub.token.empty())) {
    throw InputError(
        fmt::format("{} is gated ({}): accept its licence at {} and set HF_TOKEN to a token that "
                    "may read it",
                    model.id(), describe(result), page));
  }
  if (!hub.token.empty()) {
    throw InputError(
        fmt::format("no access to {} ({}): there is no such model, or the token in HF_TOKEN is "
                    "wrong or may not read it; see {}",
                    model.id(), describe(result), page));
  }
  throw InputError(
      fmt::format("no access to {} ({}): there is no such model, or it is private or gated; accept "
                  "its licence at {} and set HF_TOKEN",
                  model.id(), describe(result), page));
}

}  // namespace

Decision decide(const HttpResult& result, int failures, int retries, bool was_reached) {
  const auto step = result.failure == HttpFailure::none ? step_after_answer(result)
                                                        : step_after_failure(result.failure, was_reached);
  if (step == NextStep::done || step == NextStep::give_up) return {step};
  if (failures >= retries) return {NextStep::give_up};
  auto wait = backoff(failures);
  if (result.retry_after) wait = std::max<milliseconds>(wait, *result.retry_after);
  return {step, wait};
}

std::string describe(const HttpResult& result) {
  switch (result.failure) {
    case HttpFailure::none:
      return fmt::format("{} answered {}", result.host, result.head.status);
    case HttpFailure::cannot_resolve:
      return fmt::format("cannot resolve host {}", result.host);
    case HttpFailure::cannot_connect:
      return fmt::format("cannot connect to {}", result.host);
    case HttpFailure::tls:
    case HttpFailure::untrusted:
      return fmt::format("TLS with {} failed: {}", result.host, result.detail);
    default:
      return fmt::format("the connection to {} ended: {}", result.host, result.detail);
  }
}

void throw_failure(const HttpResult& result, const Hub& hub, const ModelName& model,
                   const std::string& what) {
  const int status = result.failure == HttpFailure::none ? result.head.status : 0;
  const bool is_hub = result.host == host_of(hub.endpoint);
  if ((status == 401 || status == 403) && is_hub) throw_refused(result, hub, model);
  if (status == 404 && is_hub && what.empty()) {
    throw InputError(fmt::format("no such model or revision: {} at {}", revision_text(model), hub.endpoint));
  }
  const auto about =
      fmt::format("cannot download {}: {}", what.empty() ? model.id() : what, describe(result));
  if (asks_for_too_long(result) && passes_by_itself(status)) {
    throw DownloadError(
        fmt::format("{} and asks to wait {} s, more than the {} s that are waited for; pull again later",
                    about, result.retry_after->count(), limits::hub_retry_after.count()));
  }
  switch (result.failure) {
    case HttpFailure::cannot_resolve:
    case HttpFailure::cannot_connect:
      throw DownloadError(fmt::format("{}; is this machine online? HF_ENDPOINT names another hub", about));
    case HttpFailure::untrusted:
      throw DownloadError(fmt::format("{}; SSL_CERT_FILE names the certificates to trust", about));
    case HttpFailure::cut:
      throw DownloadError(fmt::format("{}; pull again, it goes on from there", about));
    default:
      throw DownloadError(about);
  }
}

}  // namespace tandem::weights
