#include "weights/hub_retry.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace tandem::weights {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

HttpResult answer(int status, std::optional<seconds> retry_after = std::nullopt) {
  HttpResult result;
  result.head.status = status;
  result.retry_after = retry_after;
  result.host = "hub";
  return result;
}

HttpResult failure(HttpFailure failure) {
  HttpResult result;
  result.failure = failure;
  result.host = "hub";
  return result;
}

struct Row {
  HttpResult result;
  int failures;
  bool was_reached;
  NextStep step;
  milliseconds wait;
};

TEST(Decide, ByAnswerAndFailures) {
  const Row rows[] = {
      {answer(200), 0, true, NextStep::done, {}},
      {answer(206), 6, true, NextStep::done, {}},
      {answer(302), 0, true, NextStep::done, {}},
      {answer(401), 0, true, NextStep::give_up, {}},
      {answer(403), 0, true, NextStep::give_up, {}},
      {answer(404), 0, true, NextStep::give_up, {}},
      {answer(416), 0, true, NextStep::start_over, milliseconds(500)},
      {answer(416), 6, true, NextStep::give_up, {}},
      {answer(408), 0, true, NextStep::retry, milliseconds(500)},
      {answer(429), 1, true, NextStep::retry, milliseconds(1000)},
      {answer(429, seconds(7)), 1, true, NextStep::retry, milliseconds(7000)},
      {answer(429, seconds(1)), 3, true, NextStep::retry, milliseconds(4000)},
      {answer(429, seconds(300)), 0, true, NextStep::retry, milliseconds(300'000)},
      {answer(429, seconds(301)), 0, true, NextStep::give_up, {}},
      {answer(503, seconds(9)), 0, false, NextStep::retry, milliseconds(9000)},
      {answer(500), 5, true, NextStep::retry, milliseconds(16'000)},
      {answer(500), 6, true, NextStep::give_up, {}},
      {failure(HttpFailure::cut), 0, false, NextStep::retry, milliseconds(500)},
      {failure(HttpFailure::cannot_resolve), 0, false, NextStep::give_up, {}},
      {failure(HttpFailure::cannot_resolve), 0, true, NextStep::retry, milliseconds(500)},
      {failure(HttpFailure::cannot_connect), 0, false, NextStep::give_up, {}},
      {failure(HttpFailure::cannot_connect), 2, true, NextStep::retry, milliseconds(2000)},
      {failure(HttpFailure::tls), 0, false, NextStep::give_up, {}},
      {failure(HttpFailure::untrusted), 0, true, NextStep::give_up, {}},
      {failure(HttpFailure::other), 0, true, NextStep::give_up, {}},
  };
  for (const auto& row : rows) {
    const auto decision = decide(row.result, row.failures, /*retries=*/6, row.was_reached);
    EXPECT_EQ(decision.step, row.step) << describe(row.result) << " after " << row.failures;
    EXPECT_EQ(decision.wait, row.wait) << describe(row.result) << " after " << row.failures;
  }
  EXPECT_EQ(decide(answer(500), 99, 100, true).wait, milliseconds(16'000));
}

std::string message_of(const HttpResult& result, const Hub& hub, const std::string& what) {
  try {
    throw_failure(result, hub, {"acme", "tiny"}, what);
  } catch (const std::exception& error) {
    return error.what();
  }
}

TEST(ThrowFailure, SpeaksOfLicencesForTheHubAlone) {
  const Hub hub{"https://hub"};
  EXPECT_NE(message_of(answer(403), hub, "a.json").find("licence at https://hub/acme/tiny"),
            std::string::npos);
  auto elsewhere = answer(403);
  elsewhere.host = "store";
  EXPECT_EQ(message_of(elsewhere, hub, "a.json"), "cannot download a.json: store answered 403");
  EXPECT_EQ(message_of(answer(404), hub, "a.json"), "cannot download a.json: hub answered 404");
}

TEST(HostOf, IsHostAndPort) {
  EXPECT_EQ(host_of("https://a.b:8/c?d"), "a.b:8");
  EXPECT_EQ(host_of("http://a"), "a");
  EXPECT_EQ(host_of("http://a?b/c"), "a");
}

}  // namespace
}  // namespace tandem::weights
