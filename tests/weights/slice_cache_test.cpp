// Slices that a rank keeps of what another one gave it, over loopback.
#include "weights/slice_cache.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "parallel/ranks.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;

class SliceCacheTest : public testing::Test {
 protected:
  SliceCacheTest() {
    fs::create_directories(model_);
    for (const char* name : {"config.json", "model.safetensors"})
      fs::copy(fs::path(TANDEM_SOURCE_DIR) / "assets/demo-model" / name, model_);
  }
  ~SliceCacheTest() override { fs::remove_all(root_); }

  // The first or second half of all matrices, and the rest.
  static std::vector<Slice> slices_of(const Checkpoint& checkpoint, int half) {
    std::vector<Slice> slices;
    for (const auto& [name, info] : checkpoint.tensors()) {
      Slice slice{name, {info.shape.begin(), info.shape.end()}, -1, {}};
      if (slice.shape.size() == 2) {
        const int rows = slice.shape[0] / 2;
        slice.axis = 0;
        slice.part = {half * rows, (half + 1) * rows};
      }
      slices.push_back(slice);
    }
    return slices;
  }

  // A start: rank 0 has the files, rank 1 keeps what it gets. Checks the bits; returns the bytes that came.
  std::uint64_t start(int half = 0) const {
    const Checkpoint checkpoint(model_);
    const parallel::MeetingPoint meeting(2);
    std::uint64_t received = 0, sent = 0;
    const auto errors = parallel::run_ranks(2, [&](int rank) {
      const auto group = meeting.group(rank);
      if (rank == 0) {
        const auto before = parallel::link_use(group).bytes;
        Giving(group, std::make_shared<Checkpoint>(model_), {1}).wait();
        sent = parallel::link_use(group).bytes - before;
        return;
      }
      SliceCache source(std::make_unique<RemoteSource>(group, 0), cache_);
      const auto slices = slices_of(checkpoint, half);
      source.expect(slices);
      std::uint64_t heard = 0, all = 0;
      for (const auto& slice : slices) {
        const auto array = source.read(slice, [&](std::uint64_t bytes) { heard += bytes; });
        const auto own = checkpoint.read(slice, [](auto) {});
        EXPECT_EQ(array.dtype(), own.dtype());
        EXPECT_EQ(array.shape(), own.shape());
        EXPECT_EQ(std::memcmp(array.data<char>(), own.data<char>(), own.nbytes()), 0) << slice.name;
        all += own.nbytes();
      }
      source.finish();
      EXPECT_EQ(heard, all);
      received = source.received_bytes();
    });
    for (const auto& error : errors) EXPECT_EQ(error, "");
    EXPECT_GE(sent, received);
    EXPECT_LE(sent, received + (64u << 10));  // the table of tensors
    return received;
  }

  std::vector<fs::path> kept() const {
    std::vector<fs::path> files;
    if (fs::is_directory(cache_)) {
      for (const auto& entry : fs::directory_iterator(cache_)) files.push_back(entry);
    }
    return files;
  }
  // Turns a bit of the file at `share` of its length.
  static void damage(const fs::path& file, double share) {
    std::fstream stream(file, std::ios::binary | std::ios::in | std::ios::out);
    stream.seekg(static_cast<std::streamoff>(share * static_cast<double>(fs::file_size(file))));
    const auto at = stream.tellg();
    const auto byte = static_cast<char>(stream.peek() ^ 1);
    stream.seekp(at);
    stream.put(byte);
  }

  fs::path root_ = fs::temp_directory_path() / fmt::format("tandem-cache-{}", ::getpid());
  fs::path model_ = root_ / "model", cache_ = root_ / "cache";
};

TEST_F(SliceCacheTest, ReceivesNothingTheSecondTime) {
  EXPECT_GT(start(), 4'000'000u);
  ASSERT_EQ(kept().size(), 1u);
  EXPECT_EQ(start(), 0u);
  EXPECT_EQ(kept().size(), 1u);
}

TEST_F(SliceCacheTest, ReceivesWhatIsLeftFromTheDamageOn) {
  const auto all = start();
  damage(kept().at(0), 0.5);
  const auto rest = start();
  EXPECT_GT(rest, all / 10);
  EXPECT_LT(rest, all * 9 / 10);
  EXPECT_TRUE(kept().empty());  // and the next start keeps them again
  EXPECT_EQ(start(), all);
  EXPECT_EQ(start(), 0u);
}

TEST_F(SliceCacheTest, ReceivesAllWhereTheFileIsCutOrItsFirstSliceDamaged) {
  const auto all = start();
  fs::resize_file(kept().at(0), fs::file_size(kept().at(0)) - 1);
  EXPECT_EQ(start(), all);
  EXPECT_EQ(start(), 0u);
  damage(kept().at(0), 0);
  EXPECT_EQ(start(), all);
}

TEST_F(SliceCacheTest, ForgetsOtherVersionsOfTheFiles) {
  const auto all = start();
  const auto before = kept();
  damage(model_ / "model.safetensors", 0.5);  // other weights, in a file of the same length
  fs::last_write_time(model_ / "model.safetensors", fs::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_EQ(start(), all);
  ASSERT_EQ(kept().size(), 1u);
  EXPECT_NE(kept(), before);
  EXPECT_EQ(start(), 0u);
}

TEST_F(SliceCacheTest, KnowsABlobOfTheHubByItsName) {
  const auto blob = [&](char digit) { return root_ / "blobs" / std::string(64, digit); };
  fs::create_directories(root_ / "blobs");
  fs::rename(model_ / "model.safetensors", blob('a'));
  fs::create_symlink(blob('a'), model_ / "model.safetensors");
  const auto all = start();
  fs::last_write_time(blob('a'), fs::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_EQ(start(), 0u);
  fs::remove(model_ / "model.safetensors");
  fs::rename(blob('a'), blob('b'));
  fs::create_symlink(blob('b'), model_ / "model.safetensors");
  EXPECT_EQ(start(), all);
}

TEST_F(SliceCacheTest, KeepsEachSplitOfItsOwn) {
  const auto all = start(0);
  EXPECT_EQ(start(1), all);
  EXPECT_EQ(kept().size(), 2u);
  EXPECT_EQ(start(0), 0u);
  EXPECT_EQ(start(1), 0u);
}

TEST_F(SliceCacheTest, GoesOnWhereTheDiskIsFull) {
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  for (const rlim_t bytes : {rlim_t{0}, rlim_t{1'000'000}}) {
    const rlimit full{bytes, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &full), 0);
    EXPECT_GT(start(), 4'000'000u);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_TRUE(kept().empty()) << bytes;
  }
}

TEST_F(SliceCacheTest, GoesOnWhereTheFolderCannotBeMade) {
  std::ofstream(cache_) << "a file";
  EXPECT_GT(start(), 4'000'000u);
}

TEST_F(SliceCacheTest, DropsWhatALostGiverLeavesUnfinished) {
  const Checkpoint checkpoint(model_);
  fs::resize_file(model_ / "model.safetensors", fs::file_size(model_ / "model.safetensors") / 2);
  const parallel::MeetingPoint meeting(2);
  const auto errors = parallel::run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    if (rank == 0) return give_slices(group, checkpoint, {1});
    SliceCache source(std::make_unique<RemoteSource>(group, 0), cache_);
    const auto slices = slices_of(checkpoint, 0);
    source.expect(slices);
    for (const auto& slice : slices) source.read(slice, [](auto) {});
    source.finish();
  });
  EXPECT_NE(errors[1].find("rank 0"), std::string::npos) << errors[1];
  EXPECT_TRUE(kept().empty());
}

}  // namespace
}  // namespace tandem::weights
