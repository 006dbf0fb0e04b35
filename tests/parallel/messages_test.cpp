#include "parallel/messages.h"

#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <span>

#include "base/error.h"
#include "base/limits.h"
#include "parallel/ranks.h"

namespace tandem::parallel {
namespace {

TEST(Messages, ComeAsTheyWereSentInOrder) {
  const MeetingPoint meeting(3);
  const std::vector<std::size_t> sizes{0, 1, 1000, 1'000'000, 3};
  const auto errors = run_ranks(3, [&](int rank) {
    const auto group = meeting.group(rank);
    if (rank == 1) {
      for (const auto size : sizes) send_to_all(group, message(size));
      send_to(group, {2}, message(17));
      send_to(group, {}, message(5));
      return;
    }
    for (const auto size : sizes) EXPECT_EQ(receive_from(group, 1), message(size)) << size;
    if (rank == 2) {
      EXPECT_EQ(receive_from(group, 1), message(17));
    }
  });
  EXPECT_EQ(errors, std::vector<std::string>(3));
}

TEST(Messages, WaitForNobodyWhileTheyFitTheSockets) {
  const MeetingPoint meeting(2);
  std::atomic<bool> sent = false;
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    if (rank == 0) {
      for (int i = 0; i < 10; ++i) send_to_all(group, message(i));
      sent = true;
      return;
    }
    const auto start = steady_clock::now();
    while (!sent && seconds_since(start) < 5) std::this_thread::sleep_for(milliseconds(1));
    EXPECT_TRUE(sent);
    for (int i = 0; i < 10; ++i) EXPECT_EQ(receive_from(group, 0), message(i));
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

TEST(Messages, ALengthBeyondTheBoundIsRefused) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    if (rank == 0) {
      receive_from(group, 1);
      return;
    }
    const std::uint32_t length = limits::broadcast_bytes + 1;
    exchange(group, {{0, std::span(reinterpret_cast<const char*>(&length), sizeof(length)), std::nullopt}});
  });
  EXPECT_EQ(errors[0], "rank 1 sends a message of 67108865 bytes, which is too long");
  EXPECT_EQ(errors[1], "");
}

TEST(Messages, ALostRankIsSaid) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    if (rank == 1) return;
    EXPECT_THROW(receive_from(group, 1), ClusterError);
    EXPECT_THROW(send_to(group, {1}, message(3)), ClusterError);
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

}  // namespace
}  // namespace tandem::parallel
