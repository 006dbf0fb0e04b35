// Slices from rank to rank over loopback, from the golden models.
#include "weights/remote_source.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "parallel/ranks.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;
using parallel::MeetingPoint;
using parallel::run_ranks;

fs::path model_folder() { return fs::path(TANDEM_SOURCE_DIR) / "assets/demo-model"; }

// Rank `taker`'s slices of all tensors of two axes: the first one's half or the second's, by turns.
std::vector<Slice> halves(const Checkpoint& checkpoint, int taker) {
  std::vector<Slice> slices;
  for (const auto& [name, info] : checkpoint.tensors()) {
    Slice slice{name, {info.shape.begin(), info.shape.end()}, -1, {}};
    if (slice.shape.size() == 2) {
      slice.axis = static_cast<int>(slices.size() % 2);
      const int half = slice.shape[slice.axis] / 2;
      slice.part = {taker == 1 ? 0 : half, taker == 1 ? half : slice.shape[slice.axis]};
    }
    slices.push_back(slice);
  }
  return slices;
}

bool same(const mx::array& a, const mx::array& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.data<char>(), b.data<char>(), a.nbytes()) == 0;
}

TEST(RemoteSource, GivesEveryTakerItsSlicesAndNoByteMore) {
  const Checkpoint checkpoint(model_folder());
  const MeetingPoint meeting(3);
  std::uint64_t received[3] = {}, wanted = 0;
  std::uint64_t sent = 0;
  const auto errors = run_ranks(3, [&](int rank) {
    const auto group = meeting.group(rank);
    if (rank == 0) {
      const auto before = parallel::link_use(group).bytes;
      give_slices(group, checkpoint, {1, 2});
      sent = parallel::link_use(group).bytes - before;
      return;
    }
    RemoteSource source(group, 0);
    const auto slices = halves(checkpoint, rank);
    source.expect(slices);
    std::uint64_t heard = 0, own = 0;
    // Back to front: in the other order than they come.
    for (auto slice = slices.rbegin(); slice != slices.rend(); ++slice) {
      own += checkpoint.bytes(*slice);
      EXPECT_EQ(source.bytes(*slice), checkpoint.bytes(*slice)) << slice->name;
      const auto array = source.read(*slice, [&](std::uint64_t bytes) { heard += bytes; });
      EXPECT_TRUE(same(array, checkpoint.read(*slice, [](auto) {}))) << slice->name;
    }
    source.finish();
    EXPECT_EQ(heard, own);
    EXPECT_EQ(source.received_bytes(), own);
    received[rank] = own;
  });
  for (const auto& error : errors) EXPECT_EQ(error, "");
  wanted = received[1] + received[2];
  EXPECT_GE(sent, wanted);
  EXPECT_LE(sent, wanted + (64u << 10));  // the tables of tensors
}

TEST(RemoteSource, DropsWhatIsNotRead) {
  const Checkpoint checkpoint(model_folder());
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    if (rank == 0) {
      give_slices(group, checkpoint, {1});
      return parallel::exchange(group, {{1, std::span("after", 5), std::nullopt}});
    }
    RemoteSource source(group, 0);
    const auto slices = halves(checkpoint, 1);
    source.expect(slices);
    source.read(slices[2], [](auto) {});
    source.finish();
    char after[5];
    parallel::exchange(group, {{0, std::nullopt, std::span(after, 5)}});
    EXPECT_EQ(std::string(after, 5), "after");
  });
  for (const auto& error : errors) EXPECT_EQ(error, "");
}

TEST(RemoteSource, NamesTheFileThatCannotBeRead) {
  const auto folder = fs::temp_directory_path() / fmt::format("tandem-remote-{}", ::getpid());
  fs::create_directories(folder);
  for (const char* name : {"config.json", "model.safetensors"})
    fs::copy(model_folder() / name, folder, fs::copy_options::overwrite_existing);
  const Checkpoint checkpoint(folder);
  fs::resize_file(folder / "model.safetensors", fs::file_size(folder / "model.safetensors") / 2);
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    if (rank == 0) return give_slices(group, checkpoint, {1});
    RemoteSource source(group, 0);
    source.expect(halves(checkpoint, 1));
    source.finish();
  });
  fs::remove_all(folder);
  EXPECT_NE(errors[0].find("model.safetensors"), std::string::npos) << errors[0];
  EXPECT_NE(errors[1].find("rank 0"), std::string::npos) << errors[1];
}

TEST(RemoteSource, NamesTheGiverThatSaysNothing) {
  const MeetingPoint meeting(2);
  std::atomic<bool> over = false;
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group =
        meeting.group(rank, {std::chrono::milliseconds(5'000), std::chrono::milliseconds(200)});
    if (rank == 0) {
      while (!over) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return;
    }
    try {
      const RemoteSource source(group, 0);
    } catch (...) {
      over = true;
      throw;
    }
    over = true;
  });
  EXPECT_NE(errors[1].find("rank 0"), std::string::npos) << errors[1];
}

}  // namespace
}  // namespace tandem::weights
