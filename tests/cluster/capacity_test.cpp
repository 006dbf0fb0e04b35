#include "cluster/capacity.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::cluster {
namespace {

constexpr std::uint64_t gb = 1'000'000'000;
constexpr std::uint64_t margin = limits::memory_margin_bytes;  // of memories this small

// A rank whose cache takes 1000 bytes a token, with `room` bytes for it in a memory of 1 GB.
RankRoom rank_with(std::uint64_t room, const char* host = "local", int model_context = 4096) {
  return {host,
          {.free_bytes = room + margin + 5000,
           .total_bytes = gb,
           .block_bytes = 256 * 1000,
           .buffer_bytes = 5000,
           .model_context = model_context}};
}

std::string refusal(const std::vector<RankRoom>& ranks, const ContextWish& wish) {
  try {
    capacity_of(ranks, wish);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(CapacityTest, IsTheSmallestOfModelWishAndMemory) {
  const struct {
    const char* name;
    std::vector<RankRoom> ranks;
    ContextWish wish;
    int context;
    std::int64_t cache_tokens;
    const char* bound;
  } table[] = {
      {"the model's", {rank_with(100 * 256'000)}, {}, 4096, 25600, "the model's"},
      {"memory, in whole blocks", {rank_with(1'000'000)}, {}, 768, 768, "memory of this machine"},
      {"asked for less", {rank_with(100 * 256'000)}, {1000, 0}, 1000, 25600, "--context"},
      {"asked for as many as there are", {rank_with(100 * 256'000)}, {4096, 0}, 4096, 25600, "the model's"},
      {"a memory of its own size", {rank_with(100 * 256'000)}, {0, 2'000'000}, 1792, 1792, "--kv-memory"},
      {"both", {rank_with(100 * 256'000)}, {1000, 2'000'000}, 1000, 1792, "--context"},
      {"two ranks share a memory",
       {rank_with(2'000'000), rank_with(2'000'000)},
       {},
       768,
       768,
       "this machine"},
      {"the smaller of two machines",
       {rank_with(2'000'000), rank_with(1'000'000, "studio2")},
       {},
       768,
       768,
       "studio2"},
  };
  for (const auto& row : table) {
    const auto capacity = capacity_of(row.ranks, row.wish);
    EXPECT_EQ(capacity.context, row.context) << row.name;
    EXPECT_EQ(capacity.cache_tokens, row.cache_tokens) << row.name;
    EXPECT_EQ(capacity.token_bytes, 1000U) << row.name;
    EXPECT_NE(capacity.bound.find(row.bound), std::string::npos) << row.name << ": " << capacity.bound;
  }
}

// Two ranks that share a memory together take no more than there is of it, buffers and margin included.
TEST(CapacityTest, NeverPassesTheMemory) {
  for (std::uint64_t free = margin; free < margin + 20'000'000; free += 777'777) {
    auto first = rank_with(0), second = rank_with(0);
    second.room.block_bytes = 256 * 400;
    first.room.free_bytes = free;
    second.room.free_bytes = free + 12345;  // measured a little later
    first.room.buffer_bytes = 300'000;
    try {
      const auto capacity = capacity_of({first, second}, {});
      EXPECT_LE(margin + 305'000 + static_cast<std::uint64_t>(capacity.cache_tokens) * 1400, free);
      EXPECT_GE(capacity.cache_tokens, capacity.context);
    } catch (const InputError&) {
      EXPECT_LT(free, margin + 305'000 + 256 * 1400);
    }
  }
}

TEST(CapacityTest, GpusHaveMemoriesOfTheirOwnAndMustHoldTheScoresOfAChunk) {
  auto first = rank_with(1'024'000), second = rank_with(1'024'000);
  first.room.memory = "GPU-1";
  second.room.memory = "GPU-2";
  EXPECT_EQ(capacity_of({first, second}, {}).context, 1024);
  first.room.position_bytes = 1000;  // as much again
  const auto capacity = capacity_of({first, second}, {});
  EXPECT_EQ(capacity.context, 512);
  EXPECT_EQ(capacity.cache_tokens, 512);
  EXPECT_NE(capacity.bound.find("the GPU of this machine"), std::string::npos) << capacity.bound;
}

TEST(CapacityTest, RefusesWhatDoesNotFitAndNamesBoth) {
  const struct {
    std::vector<RankRoom> ranks;
    ContextWish wish;
    std::vector<const char*> words;
  } table[] = {
      {{rank_with(100 * 256'000)}, {5000, 0}, {"--context 5000", "4096", "the model's"}},
      {{rank_with(1'000'000)}, {1000, 0}, {"--context 1000", "768", "memory of this machine"}},
      {{rank_with(2'000'000)}, {1800, 1'000'000}, {"--context 1800", "768", "--kv-memory"}},
      {{rank_with(2'000'000)}, {0, 3'000'000}, {"--kv-memory 3.0 MB", "2.0 MB"}},
      {{rank_with(2'000'000), rank_with(2'000'000)}, {0, 1'500'000}, {"--kv-memory 1.5 MB", "2 ranks"}},
      {{rank_with(2'000'000), rank_with(2'000'000)}, {0, 1ull << 63}, {"--kv-memory 92", "2 ranks"}},
      {{rank_with(2'000'000)}, {0, 1000}, {"--kv-memory", "256 tokens"}},
      {{rank_with(1000, "studio2")}, {}, {"no memory", "studio2"}},
  };
  for (const auto& row : table) {
    const std::string message = refusal(row.ranks, row.wish);
    for (const char* word : row.words) EXPECT_NE(message.find(word), std::string::npos) << message;
  }
}

TEST(CapacityTest, AMemoryThatTheSystemDoesNotTellOfBoundsNothing) {
  RankRoom rank{"local", {.block_bytes = 256'000, .model_context = 4096}};
  EXPECT_EQ(capacity_of({rank}, {}).context, 4096);
}

}  // namespace
}  // namespace tandem::cluster
