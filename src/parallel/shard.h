// How a model's matrices are cut for the ranks of one stage (Megatron-LM's column and row split, Shoeybi et
// al. 2019, arXiv:1909.08053), for any number of ranks and unequal shares.
#pragma once

#include <vector>

namespace tandem::parallel {

struct Range {
  int begin = 0;
  int end = 0;
  int size() const { return end - begin; }
};

// `total` units in consecutive ranges, one a share, by largest remainder; every range has at least one unit.
// Requires total >= shares.size() and positive shares.
std::vector<Range> split_by_share(int total, const std::vector<double>& shares);

// The sizes a shard table speaks of.
enum class Dim { hidden, query, key_value, head, ffn, vocabulary };

// What follows a product with a split matrix: nothing (its outputs stay split), the sum over ranks (its
// inputs were split), or the concatenation over ranks.
enum class Reduce { none, sum, gather };

struct ModelSizes {
  int hidden = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  int vocabulary = 0;
  // Query heads and ffn columns that no cut may part: the inputs that share a scale in quantised weights.
  int heads_at_once = 1;
  int columns_at_once = 1;
};

// One rank's part of every dimension.
struct Shard {
  ModelSizes sizes;                   // of the whole model
  Range query_heads;                  // heads this rank computes
  Range kv_heads;                     // the key/value heads these read: replicated where ranks share one
  Range ffn;                          // columns
  Range vocabulary;                   // rows of the embedding and of the output matrix
  std::vector<int> vocabulary_sizes;  // of every rank of the stage

  // Elements of the whole dimension, and the part of it that is this rank's ({0, whole} for hidden and head).
  int whole(Dim dim) const;
  Range part(Dim dim) const;
  // Which local key/value head each local query head reads, [query_heads.size()].
  std::vector<int> kv_of_query() const;
};

Shard shard_of(const ModelSizes& sizes, const std::vector<double>& shares, int rank);

}  // namespace tandem::parallel
