#include "kernels/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>
#include <vector>

namespace tandem::kernels {
namespace {

class ThreadsTest : public testing::Test {
 protected:
  void TearDown() override { set_threads(1); }
};

TEST_F(ThreadsTest, EachPartIsCalledOnce) {
  for (const int count : {1, 2, 5}) {
    set_threads(count);
    EXPECT_EQ(threads(), count);
    for (const int parts : {0, 1, 2, 3, 100}) {
      for (int repeat = 0; repeat < 200; ++repeat) {
        std::vector<std::atomic<int>> calls(parts);
        parallel(parts, [&](std::int64_t i) { ++calls[i]; });
        for (const auto& call : calls) ASSERT_EQ(call, 1);
      }
    }
  }
}

TEST_F(ThreadsTest, APartMayCallAgainAndOthersMayCallMeanwhile) {
  set_threads(3);
  std::atomic<int> calls = 0;
  const auto work = [&] {
    for (int repeat = 0; repeat < 50; ++repeat) {
      parallel(4, [&](std::int64_t) { parallel(3, [&](std::int64_t) { ++calls; }); });
    }
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT_EQ(calls, 2 * 50 * 4 * 3);
}

TEST_F(ThreadsTest, WorkersSleepWhenNothingComes) {
  set_threads(3);
  parallel(3, [](std::int64_t) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const auto processor_ms = [] { return std::clock() * 1000 / CLOCKS_PER_SEC; };
  const auto before = processor_ms();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(processor_ms() - before, 20);
  std::atomic<int> calls = 0;
  parallel(3, [&](std::int64_t) { ++calls; });
  EXPECT_EQ(calls, 3);
}

}  // namespace
}  // namespace tandem::kernels
