#include "kernels/gather_products.h"

#include <span>

#include "kernels/cpu_primitive.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

// The rows of one expert: which (row, choice) pairs they are, and where they stand among the sorted.
struct Share {
  int expert;
  std::int64_t first, count;
};

// The pairs by expert, in their order within each; pairs of no expert are left out.
struct Sorted {
  std::vector<std::int64_t> pairs;
  std::vector<Share> shares;
};

Sorted sort_by_expert(const std::int32_t* ids, std::int64_t pairs, int experts) {
  std::vector<std::int64_t> first(experts + 1, 0);
  const auto is_expert = [&](std::int32_t id) { return id >= 0 && id < experts; };
  for (std::int64_t i = 0; i < pairs; ++i) {
    if (is_expert(ids[i])) ++first[ids[i] + 1];
  }
  for (int e = 0; e < experts; ++e) first[e + 1] += first[e];
  Sorted sorted;
  sorted.pairs.resize(first[experts]);
  for (int e = 0; e < experts; ++e) {
    if (first[e + 1] > first[e]) sorted.shares.push_back({e, first[e], first[e + 1] - first[e]});
  }
  for (std::int64_t i = 0; i < pairs; ++i) {
    if (is_expert(ids[i])) sorted.pairs[first[ids[i]]++] = i;
  }
  return sorted;
}

void fill_with_zeros(const GatherCall& call, int experts) {
  if (call.per_token.y) {
    std::fill_n(call.y, call.pairs / call.choices * call.out, 0.0F);
    return;
  }
  for (std::int64_t pair = 0; pair < call.pairs; ++pair) {
    if (call.ids[pair] >= 0 && call.ids[pair] < experts) continue;
    std::fill_n(call.result_of(pair), call.out, 0.0F);
  }
}

// Some of the panels of an expert, or of its tiles of rows.
struct Part {
  const Share* share;
  std::int64_t first, end;
};

// Enough parts that threads of unequal speed end together, each a long stream; of each share so many units.
template <typename Units>
std::vector<Part> parts_of(std::span<const Share> shares, const Units& units) {
  const auto count = std::ssize(shares);
  const std::int64_t wanted = threads() == 1 ? count : std::max<std::int64_t>(count, threads() * 8);
  std::vector<Part> parts;
  for (const Share& share : shares) {
    const std::int64_t all = units(share), cuts = std::clamp<std::int64_t>(wanted / count, 1, all);
    for (std::int64_t c = 0; c < cuts; ++c) parts.push_back({&share, all * c / cuts, all * (c + 1) / cuts});
  }
  return parts;
}

// A thread's memory, kept between calls, as fresh memory would be paged in anew.
struct Scratch {
  std::vector<float> rows, results;
  std::vector<std::byte> prepared;
};

// The rows of some experts side by side, their results where they belong. `pairs` begin with the first
// share's.
void multiply_some(const GatherCall& call, const std::vector<Operand>& experts, std::span<const Share> shares,
                   const std::int64_t* pairs, Scratch& scratch) {
  const PanelShape& shape = experts.front().shape;
  const PanelLoops& loops = current_loops();
  const Activation activation = activation_of(shape.format, loops);
  const std::int64_t row_bytes = prepared_bytes(activation, call.in, shape.group);
  const std::int64_t begin = shares.front().first, count = shares.back().first + shares.back().count - begin;
  const auto grow = [](auto& memory, std::int64_t size) {
    if (std::ssize(memory) < size) memory.resize(size);
    return memory.data();
  };
  float *rows = grow(scratch.rows, count * call.in), *results = grow(scratch.results, count * call.out);
  std::byte* prepared = grow(scratch.prepared, count * row_bytes);
  parallel_rows(count, call.in, [&](std::int64_t i) { call.copy_row(pairs[i], rows + i * call.in); });
  const auto tiles = parts_of(shares, [height = tile_rows(activation, loops)](const Share& share) {
    return (share.count + height - 1) / height;
  });
  parallel(std::ssize(tiles), [&](std::int64_t i) {
    const auto& [share, first, end] = tiles[i];
    const std::int64_t row = share->first - begin;
    loops.prepare({rows + row * call.in, call.in, share->count, call.in, activation, shape.group,
                   prepared + row * row_bytes},
                  first, end);
  });
  const auto panels = parts_of(shares, [&](const Share&) { return panels_of(shape); });
  parallel(std::ssize(panels), [&](std::int64_t i) {
    const auto& [share, first, end] = panels[i];
    const std::int64_t row = share->first - begin;
    multiply_panels(experts[share->expert], prepared + row * row_bytes, share->count,
                    results + row * call.out, first, end);
  });
  if (!call.per_token.y) {
    parallel_rows(count, call.out, [&](std::int64_t i) {
      std::copy_n(results + i * call.out, call.out, call.result_of(pairs[i]));
    });
    return;
  }
  // Of an expert a token has one row: so none is added to by two threads.
  for (const Share& share : shares) {
    const std::int64_t first = share.first - begin;
    parallel_rows(share.count, call.out, [&](std::int64_t i) {
      const float* from = results + (first + i) * call.out;
      float* to = call.result_of(pairs[first + i]);
      for (std::int64_t j = 0; j < call.out; ++j) to[j] += from[j];
    });
  }
}

}  // namespace

void multiply_by_expert(const GatherCall& call, const std::vector<Operand>& experts) {
  const std::int64_t numbers_at_once =
      (1 << 20) * threads();  // as caches hold; an expert's rows stay together
  const Sorted sorted = sort_by_expert(call.ids, call.pairs, static_cast<int>(experts.size()));
  fill_with_zeros(call, static_cast<int>(experts.size()));
  thread_local Scratch scratch;
  const std::span<const Share> shares(sorted.shares);
  for (std::size_t first = 0, end = 0; first < shares.size(); first = end) {
    std::int64_t rows = 0;
    while (end < shares.size() &&
           (end == first || (rows + shares[end].count) * (call.in + call.out) <= numbers_at_once))
      rows += shares[end++].count;
    multiply_some(call, experts, shares.subspan(first, end - first), &sorted.pairs[shares[first].first],
                  scratch);
  }
}

void outer_by_expert(const GatherCall& call, int experts, float* to) {
  std::fill_n(to, experts * call.out * call.in, 0.0F);
  const Sorted sorted = sort_by_expert(call.ids, call.pairs, experts);
  std::vector<float> left, right;  // of an expert's rows
  for (const Share& share : sorted.shares) {
    left.resize(call.out * share.count);
    right.resize(call.in * share.count);
    for (std::int64_t i = 0; i < share.count; ++i) {
      const std::int64_t pair = sorted.pairs[share.first + i];
      std::copy_n(call.result_of(pair), call.out, &left[i * call.out]);
      call.copy_row(pair, &right[i * call.in]);
    }
    multiply_outer(left.data(), call.out, right.data(), call.in, share.count,
                   to + share.expert * call.out * call.in);
  }
}

}  // namespace tandem::kernels
