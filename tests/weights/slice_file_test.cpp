#include "weights/slice_file.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"
#include "base/file.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;

class SliceFile : public testing::Test {
 protected:
  SliceFile() { fs::create_directories(folder_); }
  ~SliceFile() override { fs::remove_all(folder_); }

  void write_all() const {
    SliceFileWriter writer(file_, sizes_);
    for (const std::size_t index : {2, 0, 1}) writer.write(index, slices_[index]);
    writer.finish();
  }
  std::string read(std::size_t index) const {
    std::string bytes(sizes_[index], '\0');
    SliceFileReader(file_, sizes_).read(index, bytes);
    return bytes;
  }
  // What reading all of them throws.
  std::string damage() const {
    try {
      for (std::size_t index = 0; index < sizes_.size(); ++index) read(index);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  }

  fs::path folder_ = fs::temp_directory_path() / fmt::format("tandem-slices-{}", ::getpid());
  fs::path file_ = folder_ / "slices";
  std::vector<std::string> slices_{"first", "", std::string(1 << 20, 'x')};
  std::vector<std::uint64_t> sizes_{5, 0, 1 << 20};
};

TEST_F(SliceFile, GivesBackWhatWasWrittenInAnyOrder) {
  write_all();
  for (std::size_t index = 0; index < slices_.size(); ++index) EXPECT_EQ(read(index), slices_[index]);
}

TEST_F(SliceFile, IsNotThereBeforeItIsWhole) {
  {
    SliceFileWriter writer(file_, sizes_);
    writer.write(0, slices_[0]);
    EXPECT_FALSE(fs::exists(file_));
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(SliceFile, FindsADamagedByteAnywhere) {
  write_all();
  const auto whole = read_file(file_);
  const std::size_t checksums = whole.size() - 3 * 64;
  for (const std::size_t at : {std::size_t{0}, std::size_t{5}, checksums - 1, checksums, whole.size() - 1}) {
    auto bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ 1);
    std::ofstream(file_, std::ios::binary) << bytes;
    EXPECT_NE(damage().find(file_.string() + " is damaged"), std::string::npos) << at << ": " << damage();
  }
}

TEST_F(SliceFile, FindsAnotherLength) {
  write_all();
  const auto size = fs::file_size(file_);
  for (const auto other : {std::uintmax_t{0}, size - 1, size + 1}) {
    fs::resize_file(file_, other);
    EXPECT_NE(damage().find("has not the"), std::string::npos) << other;
  }
}

TEST_F(SliceFile, HasNoSliceThatWasNotWritten) {
  SliceFileWriter writer(file_, sizes_);
  writer.write(0, slices_[0]);
  writer.finish();
  EXPECT_EQ(read(0), slices_[0]);
  EXPECT_THROW(read(1), InputError);
  EXPECT_THROW(read(2), InputError);
}

TEST_F(SliceFile, SaysHowMuchRoomItLacks) {
  try {
    SliceFileWriter(file_, {1ull << 60});
    ADD_FAILURE() << "it found room for an exabyte";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("needs 1152921504606847040 bytes"), std::string::npos)
        << error.what();
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

}  // namespace
}  // namespace tandem::weights
