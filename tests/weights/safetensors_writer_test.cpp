#include "weights/safetensors_writer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/error.h"
#include "weights/safetensors.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;

class SafetensorsWriterTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("tandem-writer-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path folder_;
  const std::vector<TensorSpec> specs_{{"b", "U32", {2, 1}}, {"a", "BF16", {3}}, {"none", "F32", {0, 4}}};
};

TEST_F(SafetensorsWriterTest, IsReadAsItWasWrittenInAnyOrder) {
  const auto path = folder_ / "x.safetensors";
  SafetensorsWriter writer(path, specs_);
  writer.write("a", 0, "uvwxyz");
  writer.write("b", 4, "efgh");
  writer.write("b", 0, "abcd");
  EXPECT_FALSE(fs::exists(path));
  EXPECT_TRUE(fs::exists(writer.incomplete()));
  writer.finish();
  EXPECT_FALSE(fs::exists(writer.incomplete()));
  EXPECT_EQ(fs::file_size(path), SafetensorsWriter::file_bytes(specs_));

  const SafetensorsFile file(path);
  ASSERT_EQ(file.tensors().size(), 3U);
  for (const auto& spec : specs_) {
    EXPECT_EQ(file.tensors().at(spec.name).dtype, spec.dtype);
    EXPECT_EQ(file.tensors().at(spec.name).shape, spec.shape);
  }
  std::string bytes(8, 0);
  file.read(file.tensors().at("b").begin, 8, bytes.data());
  EXPECT_EQ(bytes, "abcdefgh");
  file.read(file.tensors().at("a").begin, 6, bytes.data());
  EXPECT_EQ(bytes, "uvwxyzgh");
  EXPECT_EQ(file.tensors().at("b").begin % 8, 0U);
}

TEST_F(SafetensorsWriterTest, LeavesNothingUnlessFinished) {
  const auto path = folder_ / "x.safetensors";
  { SafetensorsWriter(path, specs_).write("b", 0, "abcd"); }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(SafetensorsWriterTest, KeepsWhatHadTheNameUntilThen) {
  const auto path = folder_ / "x.safetensors";
  write_file(path, "before");
  { SafetensorsWriter(path, specs_).write("b", 0, "abcd"); }
  EXPECT_EQ(fs::file_size(path), 6U);
}

TEST_F(SafetensorsWriterTest, SaysWhatCannotBeMade) {
  try {
    SafetensorsWriter(folder_ / "missing" / "x.safetensors", specs_);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("missing/x.safetensors.incomplete"), std::string::npos);
  }
}

}  // namespace
}  // namespace tandem::weights
