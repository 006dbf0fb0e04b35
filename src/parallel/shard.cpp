#include "parallel/shard.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

namespace tandem::parallel {

std::vector<Range> split_by_share(int total, const std::vector<double>& shares) {
  const int parts = static_cast<int>(shares.size());
  assert(parts > 0 && total >= parts);
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<int> counts(parts);
  std::vector<double> remainders(parts);
  int given = 0;
  for (int i = 0; i < parts; ++i) {
    const double exact = total * (shares[i] / sum);
    counts[i] = std::max(1, static_cast<int>(std::floor(exact)));
    remainders[i] = exact - counts[i];
    given += counts[i];
  }
  for (; given < total; ++given) {
    const auto most = std::max_element(remainders.begin(), remainders.end()) - remainders.begin();
    ++counts[most];
    remainders[most] -= 1;
  }
  for (; given > total;
       --given) {  // tiny shares were raised to one unit: take it back from the most overfull
    int from = -1;
    for (int i = 0; i < parts; ++i) {
      if (counts[i] > 1 && (from < 0 || remainders[i] < remainders[from])) from = i;
    }
    --counts[from];
    remainders[from] += 1;
  }
  std::vector<Range> ranges(parts);
  int begin = 0;
  for (int i = 0; i < parts; ++i) {
    ranges[i] = {begin, begin + counts[i]};
    begin += counts[i];
  }
  return ranges;
}

int Shard::whole(Dim dim) const {
  switch (dim) {
    case Dim::hidden:
      return sizes.hidden;
    case Dim::query:
      return sizes.query_heads * sizes.head_dim;
    case Dim::key_value:
      return sizes.kv_heads * sizes.head_dim;
    case Dim::head:
      return sizes.head_dim;
    case Dim::ffn:
      return sizes.ffn;
    case Dim::vocabulary:
      return sizes.vocabulary;
    case Dim::heads:
      return sizes.query_heads;
    case Dim::query_latent:
      return sizes.query_latent;
    case Dim::latent:
      return sizes.latent;
    case Dim::latent_rope:
      return sizes.latent + sizes.rope;
    case Dim::up:
      return sizes.query_heads * (sizes.head_dim - sizes.rope + sizes.value_dim);
    case Dim::nope:
      return sizes.head_dim - sizes.rope;
    case Dim::value:
      return sizes.query_heads * sizes.value_dim;
    case Dim::value_head:
      return sizes.value_dim;
    case Dim::experts:
      return sizes.experts;
    case Dim::expert_ffn:
      return sizes.expert_ffn;
    case Dim::shared_ffn:
      return sizes.shared_ffn;
  }
  return 0;
}

namespace {

Range times(Range range, int factor) { return {range.begin * factor, range.end * factor}; }

}  // namespace

Range Shard::part(Dim dim) const {
  switch (dim) {
    case Dim::key_value:
      return times(kv_heads, sizes.head_dim);
    case Dim::query:
    case Dim::up:
    case Dim::value:
    case Dim::heads:
      return times(query_heads, whole(dim) / sizes.query_heads);
    case Dim::ffn:
      return ffn;
    case Dim::vocabulary:
      return vocabulary;
    case Dim::experts:
      return experts;
    case Dim::expert_ffn:
      return expert_ffn;
    case Dim::shared_ffn:
      return shared_ffn;
    default:
      return {0, whole(dim)};
  }
}

std::vector<int> Shard::kv_of_query() const {
  const int queries_per_kv = sizes.query_heads / sizes.kv_heads;
  std::vector<int> index;
  for (int head = query_heads.begin; head < query_heads.end; ++head) {
    index.push_back(head / queries_per_kv - kv_heads.begin);
  }
  return index;
}

Shard shard_of(const ModelSizes& sizes, const std::vector<double>& shares, int rank, ExpertSplit experts) {
  const auto cut = [&](int total, int at_once) {
    return times(split_by_share(total / at_once, shares)[rank], at_once);
  };
  // A dense model has no experts, and a model of experts alone no other ffn.
  const auto cut_columns = [&](int total) { return total == 0 ? Range{} : cut(total, sizes.at_once(total)); };
  Shard shard;
  shard.sizes = sizes;
  shard.query_heads = cut(sizes.query_heads, sizes.heads_at_once);
  const int queries_per_kv = sizes.query_heads / sizes.kv_heads;
  assert(queries_per_kv > 0);
  shard.kv_heads = {shard.query_heads.begin / queries_per_kv,
                    (shard.query_heads.end - 1) / queries_per_kv + 1};
  shard.ffn = cut_columns(sizes.ffn);
  shard.experts = {0, sizes.experts};
  shard.expert_ffn = {0, sizes.expert_ffn};
  if (experts == ExpertSplit::columns) {
    shard.expert_ffn = cut_columns(sizes.expert_ffn);
  } else if (sizes.experts > 0) {
    shard.experts = cut(sizes.experts, 1);
  }
  shard.shared_ffn = cut_columns(sizes.shared_ffn);
  const auto vocabulary = split_by_share(sizes.vocabulary, shares);
  shard.vocabulary = vocabulary[rank];
  for (const auto& range : vocabulary) shard.vocabulary_sizes.push_back(range.size());
  return shard;
}

}  // namespace tandem::parallel
