#include "cli/size.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace tandem::cli {
namespace {

TEST(Size, HasUnits) {
  EXPECT_EQ(parse_size("5GB", "--x"), 5'000'000'000U);
  EXPECT_EQ(parse_size("1.5 MB", "--x"), 1'500'000U);
  EXPECT_EQ(parse_size("2GiB", "--x"), 2ULL << 30);
  EXPECT_EQ(parse_size("600kb", "--x"), 600'000U);
  EXPECT_EQ(parse_size("7", "--x"), 7U);
}

TEST(Size, RefusesWhatIsNone) {
  for (const char* text : {"", "GB", "5 apples", "-5GB", "0", "0.1", "1e9", "99999999999TB", "5GBx"}) {
    EXPECT_THROW(parse_size(text, "--x"), InputError) << text;
  }
}

}  // namespace
}  // namespace tandem::cli
