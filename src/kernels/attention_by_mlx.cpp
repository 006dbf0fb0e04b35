#include "kernels/attention_by_mlx.h"

#include <mlx/fast.h>
#include <mlx/ops.h>

#include <algorithm>

#include "kernels/cuda_attention.h"
#include "kernels/pointwise.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// Every operation costs a host's time that a GPU waits for when it answers one request, so there are as few
// as can be.

// Rows [first, end) of [T, heads * D] as [1, heads, T, D].
mx::array to_heads(const mx::array& x, int first, int end, int heads, mx::Stream s) {
  const int dim = x.shape(1) / heads;
  const mx::array rows = mx::slice(x, {first, 0}, {end, x.shape(1)}, s);
  if (end - first == 1) return mx::reshape(rows, {1, heads, 1, dim}, s);
  return mx::swapaxes(mx::reshape(rows, {1, end - first, heads, dim}, s), 1, 2, s);
}

// [1, heads, T, D] as [T, heads * D].
mx::array to_rows(const mx::array& x, int width, mx::Stream s) {
  return mx::reshape(x.shape(2) == 1 ? x : mx::swapaxes(x, 1, 2, s), {x.shape(2), width}, s);
}

// Appends `update` [1, heads, T, D] after the first `length` positions and gives all of them.
mx::array append(std::optional<mx::array>& held, int length, const mx::array& update, mx::Stream s) {
  const int heads = update.shape(1), end = length + update.shape(2), dim = update.shape(3);
  grow(held, end, update.shape(), update.dtype(), s);
  // Moved in, so that MLX may write into the buffer in place.
  held = mx::slice_update(std::exchange(held, std::nullopt).value(), update, mx::Shape{0, 0, length, 0},
                          mx::Shape{1, heads, end, dim}, s);
  return mx::slice(*held, {0, 0, 0, 0}, {1, heads, end, dim}, s);
}

// The same of keys or values, in the format in which they are held.
mx::array append(HeldRows& held, KeyValueFormat format, int length, mx::array update, mx::Stream s) {
  constexpr int group = KeyValuePanels::group, bits = 8;
  if (format == KeyValueFormat::plain) return append(held.rows, length, update, s);
  const int dim = update.shape(3), missing = (group - dim % group) % group;
  if (missing > 0) update = mx::pad(update, std::vector<int>{3}, {0}, {missing}, mx::array(0), "constant", s);
  const auto codes = mx::quantize(update, group, bits, "affine", std::nullopt, s);
  const mx::array rows = append(held.rows, length, codes[0], s);
  const mx::array scales = append(held.scales, length, codes[1], s);
  const mx::array biases = append(held.biases, length, codes[2], s);
  const mx::array all =
      mx::dequantize(rows, scales, biases, group, bits, "affine", std::nullopt, std::nullopt, s);
  return missing > 0 ? mx::slice(all, {0, 0, 0, 0}, {1, all.shape(1), all.shape(2), dim}, s) : all;
}

// [T, start + T]: whether position start + row sees column, causal and at most `window` back.
mx::array window_mask(int start, int tokens, int window, mx::Stream s) {
  const mx::array rows = mx::expand_dims(mx::arange(start, start + tokens, mx::int32, s), 1, s);
  const mx::array columns = mx::expand_dims(mx::arange(0, start + tokens, mx::int32, s), 0, s);
  return mx::logical_and(mx::less_equal(columns, rows, s),
                         mx::greater(columns, mx::subtract(rows, mx::array(window), s), s), s);
}

// Latents [B, 1, T, latent] by the matrices of every head, [H, latent, n] or turned over: [B, H, T, n].
mx::array by_every_head(const mx::array& latents, const Experts& up, bool turned, mx::Stream s) {
  const mx::array weight = up.affine ? *dequantised(up, s).weight : *up.weight;
  return mx::matmul(mx::astype(latents, weight.dtype(), s), turned ? mx::swapaxes(weight, 1, 2, s) : weight,
                    s);
}

struct HeadRows {
  mx::array keys, values;  // [B, H, T, D]
};

// Latents with rotated keys [B, 1, T, latent + rope] become the keys and values of every head.
HeadRows expand(const mx::array& held, const HeadExpansion& up, mx::Stream s) {
  const int latent = up.key_up.out(), batch = held.shape(0), positions = held.shape(2), width = held.shape(3);
  const mx::array latents = mx::slice(held, {0, 0, 0, 0}, {batch, 1, positions, latent}, s);
  const mx::array nope = by_every_head(latents, up.key_up, false, s);
  const mx::array rope = mx::broadcast_to(mx::slice(held, {0, 0, 0, latent}, {batch, 1, positions, width}, s),
                                          {batch, up.key_up.count(), positions, width - latent}, s);
  return {mx::concatenate({nope, mx::astype(rope, nope.dtype(), s)}, 3, s),
          by_every_head(latents, up.value_up, true, s)};
}

int value_dim_of(const AttentionHeads& heads, const mx::array& v) {
  if (heads.expansion) return heads.expansion->value_up.out();
  return heads.value_dim > 0 ? heads.value_dim : v.shape(1) / heads.kv_heads;
}

// The last T of as many positions as there are keys, each with those up to itself: q [B, heads, T, D], keys
// and values [B, kv_heads, positions, D] as they are held → [B, heads, T, value].
mx::array attend(const mx::array& q, HeadRows held, const AttentionHeads& heads, int value_dim,
                 mx::Stream s) {
  auto& [keys, values] = held;
  const int tokens = q.shape(2), positions = keys.shape(2);
  if (heads.expansion) {
    held = expand(keys, *heads.expansion, s);
  } else if (heads.value_dim > 0) {
    values = mx::slice(keys, {0, 0, 0, 0}, {keys.shape(0), keys.shape(1), positions, value_dim}, s);
  }
  if (!heads.are_even()) {
    const mx::array index(heads.kv_of_query.begin(), {static_cast<int>(heads.kv_of_query.size())});
    keys = mx::take(keys, index, 1, s);
    values = mx::take(values, index, 1, s);
  }
  const bool slides = heads.window > 0 && positions > heads.window;
  const auto mask =
      slides ? std::optional(window_mask(positions - tokens, tokens, heads.window, s)) : std::nullopt;
  return mx::fast::scaled_dot_product_attention(q, keys, values, heads.scale,
                                                slides ? "array" : (tokens > 1 ? "causal" : ""), mask,
                                                std::nullopt, false, s);
}

// Sequences that continue no others, filled up to the longest: what stands behind a sequence is seen by none
// of its rows. For one after the other a GPU would wait for its host, and for a plan of each length.
mx::array attend_together(const mx::array& q, const mx::array& k, const mx::array& v,
                          const AttentionHeads& heads, const std::vector<AttentionRows>& sequences,
                          mx::Stream s) {
  constexpr int step = 16;  // fewer lengths
  int longest = 0;
  for (const auto& one : sequences) longest = std::max(longest, one.tokens);
  longest = (longest + step - 1) / step * step;
  const int count = static_cast<int>(sequences.size());
  std::vector<int> filled, own;  // the row of each place, the place of each row
  int first = 0;
  for (const auto& one : sequences) {
    for (int t = 0; t < longest; ++t) {
      if (t < one.tokens) own.push_back(static_cast<int>(filled.size()));
      filled.push_back(first + std::min(t, one.tokens - 1));
    }
    first += one.tokens;
  }
  const mx::array from(filled.begin(), {count * longest}), back(own.begin(), {first});
  const auto by_head = [&](const mx::array& x, int of) {
    const mx::array rows = mx::take(x, from, 0, s);
    return mx::swapaxes(mx::reshape(rows, {count, longest, of, x.shape(1) / of}, s), 1, 2, s);
  };
  const int query_heads = static_cast<int>(heads.kv_of_query.size()), value_dim = value_dim_of(heads, v);
  const mx::array y = attend(by_head(q, query_heads),
                             {by_head(k, heads.kv_heads), by_head(v, heads.kv_heads)}, heads, value_dim, s);
  const mx::array rows = mx::reshape(mx::swapaxes(y, 1, 2, s), {count * longest, query_heads * value_dim}, s);
  return mx::take(rows, back, 0, s);
}

// One sequence, whose rows of q, k and v are those from `first` on.
mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionHeads& heads,
                 int first, const AttentionRows& sequence, mx::Stream s) {
  const int query_heads = static_cast<int>(heads.kv_of_query.size());
  const bool in_keys = heads.expansion || heads.value_dim > 0;
  const int value_dim = value_dim_of(heads, v);
  const int end = first + sequence.tokens, start = sequence.held ? sequence.held->length : 0;
  mx::array keys = to_heads(k, first, end, heads.kv_heads, s),
            values = to_heads(v, first, end, heads.kv_heads, s);
  if (sequence.held) {
    keys = append(sequence.held->keys, sequence.held->format, start, keys, s);
    if (!in_keys) values = append(sequence.held->values, sequence.held->format, start, values, s);
    sequence.held->length += sequence.tokens;
  }
  const mx::array y = attend(to_heads(q, first, end, query_heads, s), {keys, values}, heads, value_dim, s);
  return to_rows(y, query_heads * value_dim, s);
}

}  // namespace

mx::array attention_by_mlx(const mx::array& q, const mx::array& k, const mx::array& v,
                           const AttentionHeads& heads, const std::vector<AttentionRows>& sequences,
                           mx::Stream s) {
  const auto alone = [](const AttentionRows& one) { return !one.held; };
  if (sequences.size() > 1 && std::all_of(sequences.begin(), sequences.end(), alone))
    return attend_together(q, k, v, heads, sequences, s);
  const auto is_answer = [](const AttentionRows& one) { return one.tokens == 1 && one.held; };
  std::vector<mx::array> results;
  int first = 0;
  for (auto at = sequences.begin(); at != sequences.end();) {
    const auto end = std::find_if_not(at, sequences.end(), is_answer);
    if (auto y = attention_on_cuda(q, k, v, heads, first, {at, end}, s)) {
      results.push_back(*y);
      first += static_cast<int>(end - at);
      at = end;
    } else {
      results.push_back(attend(q, k, v, heads, first, *at, s));
      first += at++->tokens;
    }
  }
  return results.size() == 1 ? results.front() : mx::concatenate(results, 0, s);
}

}  // namespace tandem::kernels
