#include "cli/progress_bar.h"

#include <gtest/gtest.h>

namespace tandem::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(SpeedMeter, IsThatOfTheLastSeconds) {
  SpeedMeter meter;
  SpeedMeter::Time now{};
  EXPECT_EQ(meter.bytes_per_s(), 0);
  std::uint64_t bytes = 0;
  for (int i = 0; i < 100; ++i) meter.add(now += milliseconds(200), bytes += 200);
  EXPECT_NEAR(meter.bytes_per_s(), 1000, 1);
  for (int i = 0; i < 30; ++i) meter.add(now += milliseconds(200), bytes += 20);
  EXPECT_NEAR(meter.bytes_per_s(), 100, 1);
  meter.add(now += seconds(60), bytes);
  EXPECT_LT(meter.bytes_per_s(), 1);
}

TEST(TimeLeft, IsWrittenByItsLength) {
  EXPECT_EQ(format_time_left(9, 1), "0:09");
  EXPECT_EQ(format_time_left(754, 1), "12:34");
  EXPECT_EQ(format_time_left(3723, 1), "1:02:03");
  EXPECT_EQ(format_time_left(0, 1), "0:00");
  EXPECT_EQ(format_time_left(5, 0), "-");
  EXPECT_EQ(format_time_left(1e12, 1), "-");
}

TEST(ProgressLine, HasColumnsOfFixedWidths) {
  const auto at = [](std::uint64_t bytes, double speed) {
    return progress_line({10'100'000'000, bytes, 0, "3 of 12 files"}, speed);
  };
  EXPECT_EQ(at(4'242'000'000, 118.3e6),
            " 42 %    4.2 GB of  10.1 GB  118.3 MB/s      0:50 left  3 of 12 files");
  EXPECT_EQ(at(0, 0).size(), at(9'999'999'999, 1e9).size());
}

}  // namespace
}  // namespace tandem::cli
