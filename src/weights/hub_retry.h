// What follows when a request to the hub ended: a pure function, and the words for the user.
#pragma once

#include <chrono>
#include <string>

#include "weights/http.h"
#include "weights/hub_cache.h"

namespace tandem::weights {

struct Hub {
  std::string endpoint;  // as checked_endpoint leaves it
  std::string token;     // empty: none
  std::string ca_file;   // certificates to trust in place of the system's; empty: the system's
};

enum class NextStep { done, retry, start_over, give_up };

struct Decision {
  NextStep step = NextStep::give_up;
  std::chrono::milliseconds wait{0};  // before a retry, or one from the start
};

// `failures`: how many came before in a row; after `retries` of them it is over. A server that says when to
// come back is given that time, up to limits::hub_retry_after. A host that was reached before
// (`was_reached`) is tried again when it cannot be; one that never was is rather a wrong name.
Decision decide(const HttpResult& result, int failures, int retries, bool was_reached);

// One line on what went wrong: "HOST answered 503".
std::string describe(const HttpResult& result);

// The end: InputError for what the user can mend (no such model, no licence, a wrong address), else
// DownloadError. `what` names the file, or is empty for the model's list of files.
[[noreturn]] void throw_failure(const HttpResult& result, const Hub& hub, const ModelName& model,
                                const std::string& what);

}  // namespace tandem::weights
