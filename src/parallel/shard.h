// How a model's matrices are cut for the ranks of one stage (Megatron-LM's column and row split, Shoeybi et
// al. 2019, arXiv:1909.08053), for any number of ranks and unequal shares.
#pragma once

#include <numeric>
#include <vector>

namespace tandem::parallel {

struct Range {
  int begin = 0;
  int end = 0;
  int size() const { return end - begin; }

  bool operator==(const Range&) const = default;
};

// `total` units in consecutive ranges, one a share, by largest remainder; every range has at least one unit.
// Requires total >= shares.size() and positive shares.
std::vector<Range> split_by_share(int total, const std::vector<double>& shares);

// The sizes a shard table speaks of.
enum class Dim {
  hidden,
  query,      // query heads × head_dim
  key_value,  // key/value heads × head_dim
  head,       // head_dim
  ffn,
  vocabulary,
  // Multi-head latent attention.
  heads,         // query heads
  query_latent,  // what queries are compressed to
  latent,        // what keys and values are compressed to
  latent_rope,   // the same with the rotated part of the keys
  up,            // query heads × (nope + value): from the latent to keys and values
  nope,          // the part of a head's key that is not rotated
  value,         // query heads × value size
  value_head,
  // Mixture of experts.
  experts,
  expert_ffn,
  shared_ffn,  // of the experts that every token has, as one
};

// What follows a product with a split matrix: nothing (its outputs stay split), the sum over ranks (its
// inputs were split), or the concatenation over ranks.
enum class Reduce { none, sum, gather };

// How the ranks of a stage share the routed experts: some columns of every expert, or some experts whole.
enum class ExpertSplit { columns, whole };

struct ModelSizes {
  int hidden = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;  // of queries and keys
  int ffn = 0;
  int vocabulary = 0;
  // Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).
  int query_latent = 0;  // 0: queries are not compressed
  int latent = 0;        // 0: grouped attention
  int rope = 0;          // of head_dim, what is rotated
  int value_dim = 0;     // of a head
  // Mixture of experts.
  int experts = 0;
  int expert_ffn = 0;
  int shared_ffn = 0;
  // Query heads and ffn columns that no cut may part: the inputs that share a scale in quantised weights.
  int heads_at_once = 1;
  int columns_at_once = 1;

  // The same for a width of `columns`, which no group can have that does not divide it: mlx-lm leaves such
  // matrices unquantised. Groups are powers of two.
  int at_once(int columns) const { return std::gcd(columns, columns_at_once); }
};

// One rank's part of every dimension.
struct Shard {
  ModelSizes sizes;           // of the whole model
  Range query_heads;          // heads this rank computes
  Range kv_heads;             // the key/value heads these read: replicated where ranks share one
  Range ffn;                  // columns
  Range experts, expert_ffn;  // of which one is whole
  Range shared_ffn;
  Range vocabulary;                   // rows of the embedding and of the output matrix
  std::vector<int> vocabulary_sizes;  // of every rank of the stage

  // Elements of the whole dimension, and the part of it that is this rank's ({0, whole} for those that are
  // never cut).
  int whole(Dim dim) const;
  Range part(Dim dim) const;
  // Which local key/value head each local query head reads, [query_heads.size()].
  std::vector<int> kv_of_query() const;
};

// The part of rank `rank` of a stage whose ranks have these shares, which need not add up to 1. Requires a
// unit for each rank of every dimension that is cut, what no cut may part being one unit (plan.h's validate()
// sees to it), and that kv_heads divides query_heads.
Shard shard_of(const ModelSizes& sizes, const std::vector<double>& shares, int rank,
               ExpertSplit experts = ExpertSplit::columns);

}  // namespace tandem::parallel
