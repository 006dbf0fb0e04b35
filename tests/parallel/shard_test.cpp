#include "parallel/shard.h"

#include <gtest/gtest.h>

#include <numeric>
#include <ostream>
#include <vector>

namespace tandem::parallel {

inline void PrintTo(const Range& range, std::ostream* out) {
  *out << "[" << range.begin << ", " << range.end << ")";
}

namespace {

std::vector<int> sizes_of(const std::vector<Range>& ranges) {
  std::vector<int> sizes;
  int next = 0;
  for (const auto& range : ranges) {
    EXPECT_EQ(range.begin, next);
    next = range.end;
    sizes.push_back(range.size());
  }
  return sizes;
}

TEST(Shard, UnitsGoByShareAndNobodyGetsNone) {
  const struct {
    int total;
    std::vector<double> shares;
    std::vector<int> sizes;
  } table[] = {{10, {1}, {10}},
               {10, {1, 1}, {5, 5}},
               {7, {1, 1, 1}, {3, 2, 2}},
               {10, {0.75, 0.25}, {8, 2}},
               {12, {2, 1}, {8, 4}},  // they need not add up to 1
               {5, {0.6, 0.3, 0.1}, {3, 1, 1}},
               {4, {1, 1e-9, 1e-9}, {2, 1, 1}},  // raised to a unit, which is taken from the largest
               {9, {1e-9, 0.5, 0.5, 1e-9}, {1, 3, 4, 1}},
               {3, {100, 1, 1}, {1, 1, 1}}};
  for (const auto& row : table) {
    EXPECT_EQ(sizes_of(split_by_share(row.total, row.shares)), row.sizes) << row.total;
  }
}

TEST(Shard, NobodyIsAUnitOffItsShare) {
  for (const auto& shares :
       std::vector<std::vector<double>>{{1, 2}, {0.3, 0.3, 0.4}, {5, 1, 1, 1}, {0.11, 0.22, 0.33, 0.34}}) {
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    for (const int total : {20, 37, 1000, 151'936}) {
      const auto sizes = sizes_of(split_by_share(total, shares));
      EXPECT_EQ(std::accumulate(sizes.begin(), sizes.end(), 0), total);
      for (std::size_t i = 0; i < shares.size(); ++i) EXPECT_NEAR(sizes[i], total * shares[i] / sum, 1);
    }
  }
}

ModelSizes grouped() {
  return {.hidden = 32, .query_heads = 8, .kv_heads = 2, .head_dim = 4, .ffn = 96, .vocabulary = 11};
}

TEST(Shard, QueriesFindTheirKeysAmongTheRanksOwn) {
  const struct {
    Range queries, keys;
    std::vector<int> kv_of_query;
  } table[] = {{{0, 3}, {0, 1}, {0, 0, 0}}, {{3, 6}, {0, 2}, {0, 1, 1}}, {{6, 8}, {1, 2}, {0, 0}}};
  for (int rank = 0; rank < 3; ++rank) {
    const Shard shard = shard_of(grouped(), {1, 1, 1}, rank);
    EXPECT_EQ(shard.query_heads, table[rank].queries);
    EXPECT_EQ(shard.kv_heads, table[rank].keys);
    EXPECT_EQ(shard.kv_of_query(), table[rank].kv_of_query);
    EXPECT_EQ(shard.part(Dim::query), (Range{table[rank].queries.begin * 4, table[rank].queries.end * 4}));
    EXPECT_EQ(shard.part(Dim::key_value), (Range{table[rank].keys.begin * 4, table[rank].keys.end * 4}));
    EXPECT_EQ(shard.part(Dim::hidden), (Range{0, 32}));
    EXPECT_EQ(shard.vocabulary_sizes, (std::vector<int>{4, 4, 3}));
  }
}

TEST(Shard, NoCutPartsWhatSharesAScale) {
  ModelSizes sizes = grouped();
  sizes.heads_at_once = 2;
  sizes.columns_at_once = 64;
  const struct { int columns, at_once; } table[] = {{1408, 64}, {96, 32}, {64, 64}, {7, 1}};
  for (const auto& row : table) EXPECT_EQ(sizes.at_once(row.columns), row.at_once) << row.columns;
  const std::vector<double> shares{0.7, 0.3};
  const Shard first = shard_of(sizes, shares, 0), second = shard_of(sizes, shares, 1);
  EXPECT_EQ(first.query_heads, (Range{0, 6}));
  EXPECT_EQ(second.query_heads, (Range{6, 8}));
  EXPECT_EQ(first.ffn, (Range{0, 64}));  // of three times 32
  EXPECT_EQ(second.ffn, (Range{64, 96}));
}

TEST(Shard, ExpertsAreCutByColumnsOrGivenWhole) {
  ModelSizes sizes = grouped();
  sizes.ffn = 0;
  sizes.experts = 6;
  sizes.expert_ffn = 10;
  sizes.shared_ffn = 4;
  const std::vector<double> shares{2, 1};
  const struct {
    ExpertSplit split;
    int rank;
    Range experts, columns, shared;
  } table[] = {{ExpertSplit::columns, 0, {0, 6}, {0, 7}, {0, 3}},
               {ExpertSplit::columns, 1, {0, 6}, {7, 10}, {3, 4}},
               {ExpertSplit::whole, 0, {0, 4}, {0, 10}, {0, 3}},
               {ExpertSplit::whole, 1, {4, 6}, {0, 10}, {3, 4}}};
  for (const auto& row : table) {
    const Shard shard = shard_of(sizes, shares, row.rank, row.split);
    EXPECT_EQ(shard.part(Dim::experts), row.experts);
    EXPECT_EQ(shard.part(Dim::expert_ffn), row.columns);
    EXPECT_EQ(shard.part(Dim::shared_ffn), row.shared);
    EXPECT_EQ(shard.part(Dim::ffn), (Range{0, 0}));
  }
  const Shard dense = shard_of(grouped(), shares, 1, ExpertSplit::whole);
  EXPECT_EQ(dense.experts, (Range{0, 0}));
  EXPECT_EQ(dense.expert_ffn, (Range{0, 0}));
}

TEST(Shard, LatentsAreWholeAndTheirHeadsCut) {
  const ModelSizes sizes{.hidden = 16,
                         .query_heads = 4,
                         .kv_heads = 4,
                         .head_dim = 6,
                         .ffn = 8,
                         .vocabulary = 8,
                         .query_latent = 10,
                         .latent = 5,
                         .rope = 2,
                         .value_dim = 3};
  const struct {
    Dim dim;
    int whole;
    Range part;  // of the second of two ranks
  } table[] = {{Dim::query, 24, {12, 24}},      {Dim::heads, 4, {2, 4}},  {Dim::up, 28, {14, 28}},
               {Dim::value, 12, {6, 12}},       {Dim::nope, 4, {0, 4}},   {Dim::value_head, 3, {0, 3}},
               {Dim::latent_rope, 7, {0, 7}},   {Dim::latent, 5, {0, 5}}, {Dim::head, 6, {0, 6}},
               {Dim::query_latent, 10, {0, 10}}};
  const Shard shard = shard_of(sizes, {1, 1}, 1);
  for (const auto& row : table) {
    EXPECT_EQ(shard.whole(row.dim), row.whole);
    EXPECT_EQ(shard.part(row.dim), row.part);
  }
}

}  // namespace
}  // namespace tandem::parallel
