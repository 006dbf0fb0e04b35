#include "train/event_file.h"

#include <gtest/gtest.h>

namespace tandem::train {
namespace {

// RFC 3720, appendix B.4, and the check value of the CRC catalogues.
TEST(EventFile, ChecksumsAreCastagnolis) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43U);
  EXPECT_EQ(crc32c(""), 0U);
}

}  // namespace
}  // namespace tandem::train
