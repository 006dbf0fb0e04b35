#include "kernels/cuda_attention.h"

#include <mlx/ops.h>

#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include "kernels/cuda_kernel.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// Inputs: q, k, v, places and for each sequence what it holds; output: y; constants: T, key_dim, value_dim,
// heads, kv_heads, queries, window, in_keys, lanes, at_once, warps, scale_bits.
//
// A block computes `queries` heads, which read one key/value head, of a sequence. `lanes` threads together
// take every n-th position, each some numbers of it, with a softmax of their own (Milakov and Gimelshein,
// arXiv:1805.02867); these are merged in the warp by shuffles, then through shared memory.
const char* const source = R"(
  using namespace tandem;
  constexpr int key_parts = (key_dim / 8 + lanes - 1) / lanes, value_parts = (value_dim / 8 + lanes - 1) / lanes;
  constexpr int teams = warps * 32 / lanes, group = heads / kv_heads, blocks_of_kv = group / queries;
  const int lane = threadIdx.x % lanes, team = threadIdx.x / lanes, warp = threadIdx.x / 32;
  const int sequence = blockIdx.y, head = blockIdx.x * queries, kv = head / group;
  const int start = places[sequence * 3], capacity = places[sequence * 3 + 1], row = places[sequence * 3 + 2];
  const long long base = (long long)kv * capacity;
  T* const held_keys = const_cast<T*>(all_keys) + base * key_dim;
  T* const held_values = in_keys ? held_keys : const_cast<T*>(all_values) + base * value_dim;
  constexpr int value_stride = in_keys ? key_dim : value_dim;
  const T* const new_key = k + (long long)row * k_strides[0] + kv * key_dim;
  const T* const new_value = in_keys ? new_key : v + (long long)row * v_strides[0] + kv * value_dim;
  if (blockIdx.x % blocks_of_kv == 0) {
    for (int i = threadIdx.x; i < key_dim; i += warps * 32) held_keys[(long long)start * key_dim + i] = new_key[i];
    if (!in_keys)
      for (int i = threadIdx.x; i < value_dim; i += warps * 32)
        held_values[(long long)start * value_dim + i] = new_value[i];
  }

  const float scale = __int_as_float(scale_bits) * 1.44269504f;
  float query[queries][key_parts][8], sum[queries][value_parts][8] = {}, most[queries], total[queries];
  #pragma unroll
  for (int h = 0; h < queries; ++h) {
    most[h] = -1e30f;
    total[h] = 0;
    const T* from = q + (long long)row * q_strides[0] + (head + h) * key_dim;
    #pragma unroll
    for (int c = 0; c < key_parts; ++c) {
      const int at = (c * lanes + lane) * 8;
      #pragma unroll
      for (int i = 0; i < 8; ++i) query[h][c][i] = at < key_dim ? scale * to_float(from[at + i]) : 0.0f;
    }
  }
  const int first = window > 0 && start >= window ? start - window + 1 : 0;
  // All threads go round as often: shuffles take whole warps.
  for (int p = first + team; p - team <= start; p += teams * at_once) {
    uint4 keys[at_once][key_parts], values[at_once][value_parts];
    #pragma unroll
    for (int u = 0; u < at_once; ++u) {
      const int position = min(p + u * teams, start);
      const T* key = position == start ? new_key : held_keys + (long long)position * key_dim;
      const T* value = position == start ? new_value : held_values + (long long)position * value_stride;
      #pragma unroll
      for (int c = 0; c < key_parts; ++c) {
        const int at = (c * lanes + lane) * 8;
        keys[u][c] = at < key_dim ? *reinterpret_cast<const uint4*>(key + at) : uint4{0, 0, 0, 0};
      }
      #pragma unroll
      for (int c = 0; c < value_parts; ++c) {
        const int at = (c * lanes + lane) * 8;
        values[u][c] = at < value_dim ? *reinterpret_cast<const uint4*>(value + at) : uint4{0, 0, 0, 0};
      }
    }
    #pragma unroll
    for (int h = 0; h < queries; ++h) {
      float score[at_once], top = most[h];
      #pragma unroll
      for (int u = 0; u < at_once; ++u) {
        score[u] = 0;
        #pragma unroll
        for (int c = 0; c < key_parts; ++c) {
          const T* numbers = reinterpret_cast<const T*>(&keys[u][c]);
          #pragma unroll
          for (int i = 0; i < 8; ++i) score[u] += query[h][c][i] * to_float(numbers[i]);
        }
        #pragma unroll
        for (int distance = lanes / 2; distance > 0; distance /= 2)
          score[u] += __shfl_xor_sync(0xffffffff, score[u], distance);
        if (p + u * teams > start) score[u] = -1e30f;
        top = max(top, score[u]);
      }
      const float kept = exp2f(most[h] - top);
      most[h] = top;
      total[h] *= kept;
      #pragma unroll
      for (int c = 0; c < value_parts; ++c)
        #pragma unroll
        for (int i = 0; i < 8; ++i) sum[h][c][i] *= kept;
      #pragma unroll
      for (int u = 0; u < at_once; ++u) {
        const float weight = p + u * teams > start ? 0.0f : exp2f(score[u] - top);
        total[h] += weight;
        #pragma unroll
        for (int c = 0; c < value_parts; ++c) {
          const T* numbers = reinterpret_cast<const T*>(&values[u][c]);
          #pragma unroll
          for (int i = 0; i < 8; ++i) sum[h][c][i] += weight * to_float(numbers[i]);
        }
      }
    }
  }

  __shared__ float part_most[warps], part_total[warps], part_sum[warps][value_dim];
  #pragma unroll
  for (int h = 0; h < queries; ++h) {
    #pragma unroll
    for (int distance = lanes; distance < 32; distance *= 2) {
      const float other = __shfl_xor_sync(0xffffffff, most[h], distance), top = max(most[h], other);
      const float mine = exp2f(most[h] - top), theirs = exp2f(other - top);
      total[h] = total[h] * mine + __shfl_xor_sync(0xffffffff, total[h], distance) * theirs;
      #pragma unroll
      for (int c = 0; c < value_parts; ++c)
        #pragma unroll
        for (int i = 0; i < 8; ++i)
          sum[h][c][i] = sum[h][c][i] * mine + __shfl_xor_sync(0xffffffff, sum[h][c][i], distance) * theirs;
      most[h] = top;
    }
    __syncthreads();
    if (threadIdx.x % 32 < lanes) {
      part_most[warp] = most[h];
      part_total[warp] = total[h];
      #pragma unroll
      for (int c = 0; c < value_parts; ++c) {
        const int at = (c * lanes + lane) * 8;
        if (at >= value_dim) continue;
        #pragma unroll
        for (int i = 0; i < 8; ++i) part_sum[warp][at + i] = sum[h][c][i];
      }
    }
    __syncthreads();
    float top = part_most[0], all = 0, shares[warps];
    #pragma unroll
    for (int w = 1; w < warps; ++w) top = max(top, part_most[w]);
    #pragma unroll
    for (int w = 0; w < warps; ++w) {
      shares[w] = exp2f(part_most[w] - top);
      all += part_total[w] * shares[w];
    }
    for (int i = threadIdx.x; i < value_dim; i += warps * 32) {
      float result = 0;
      #pragma unroll
      for (int w = 0; w < warps; ++w) result += part_sum[w][i] * shares[w];
      y[((long long)sequence * heads + head + h) * value_dim + i] = T(result / all);
    }
  }
)";

struct Shape {
  int heads, kv_heads, key_dim, value_dim;
  bool in_keys;
};

// Threads that share a position: each takes 8 numbers at a time.
int lanes_of(const Shape& shape) {
  return std::min(32, static_cast<int>(std::bit_ceil(static_cast<unsigned>(shape.key_dim) / 8)));
}

// Heads of one key/value head that a block computes, as many as its registers hold.
int queries_of(const Shape& shape) {
  const int group = shape.heads / shape.kv_heads, most = shape.key_dim > 256 ? 2 : 4;
  int queries = 1;
  while (queries * 2 <= most && group % (queries * 2) == 0) queries *= 2;
  return queries;
}

// A block of few heads has registers for more threads.
int warps_of(const Shape& shape) { return shape.key_dim <= 128 && queries_of(shape) <= 2 ? 16 : 8; }

CudaLaunch describe(const Shape& shape, const AttentionHeads& heads, mx::Dtype dtype, int sequences,
                    int compiled_for) {
  const int queries = queries_of(shape), warps = warps_of(shape);
  CudaLaunch launch{.name = "tandem_attention",
                    .header = cuda_header,
                    .source = "const T *all_keys = nullptr, *all_values = nullptr;\n",
                    .inputs = {"q", "k", "v", "places"},
                    .outputs = {"y"},
                    .constants = {{"T", dtype},
                                  {"key_dim", shape.key_dim},
                                  {"value_dim", shape.value_dim},
                                  {"heads", shape.heads},
                                  {"kv_heads", shape.kv_heads},
                                  {"queries", queries},
                                  {"window", heads.window},
                                  {"in_keys", shape.in_keys},
                                  {"lanes", lanes_of(shape)},
                                  {"at_once", shape.key_dim > 256 ? 1 : 4},
                                  {"warps", warps},
                                  {"scale_bits", std::bit_cast<int>(heads.scale)}},
                    .grid = {shape.heads / queries * warps * 32, sequences, 1},
                    .block = {warps * 32, 1, 1},
                    .strided = true};
  for (int i = 0; i < compiled_for; ++i) {
    const std::string number = std::to_string(i);
    launch.inputs.push_back("keys_" + number);
    launch.source += "if (blockIdx.y == " + number + ") all_keys = keys_" + number;
    if (!shape.in_keys) {
      launch.inputs.push_back("values_" + number);
      launch.source += ", all_values = values_" + number;
    }
    launch.source += ";\n";
  }
  launch.source += source;
  return launch;
}

// For each sequence the position of its new row, its capacity and its row: the same array for all layers of a
// step.
mx::array places_of(std::vector<int> places) {
  thread_local std::vector<int> last;
  thread_local std::optional<mx::array> held;
  if (!held || last != places) {
    held = mx::array(places.data(), {static_cast<int>(places.size())}, mx::int32);
    last = std::move(places);
  }
  return *held;
}

}  // namespace

bool has_cuda_attention(const KeyValueShape& shape, KeyValueFormat format, mx::Dtype dtype, mx::Stream s) {
  constexpr int most_key_dim = 1024, most_value_dim = 512;
  return is_cuda(s) && is_half(dtype) && format == KeyValueFormat::plain && shape.key_dim % 8 == 0 &&
         shape.value_dim % 8 == 0 && shape.key_dim <= most_key_dim && shape.value_dim <= most_value_dim;
}

std::optional<mx::array> attention_on_cuda(const mx::array& q, const mx::array& k, const mx::array& v,
                                           const AttentionHeads& heads, int first,
                                           std::span<const AttentionRows> sequences, mx::Stream s) {
  const int query_heads = static_cast<int>(heads.kv_of_query.size());
  const Shape shape{query_heads, heads.kv_heads, k.shape(1) / heads.kv_heads,
                    heads.value_dim > 0 ? heads.value_dim : v.shape(1) / heads.kv_heads, heads.value_dim > 0};
  const mx::Dtype dtype = q.dtype();
  if (k.dtype() != dtype || v.dtype() != dtype || heads.expansion || !heads.are_even()) return std::nullopt;
  const KeyValueShape held_shape{heads.kv_heads, shape.key_dim, shape.value_dim, shape.in_keys};
  const auto is_single = [&](const AttentionRows& one) {
    return one.tokens == 1 && one.held && has_cuda_attention(held_shape, one.held->format, dtype, s);
  };
  if (sequences.empty() || !std::all_of(sequences.begin(), sequences.end(), is_single)) return std::nullopt;
  std::vector<int> places;
  std::vector<mx::array> held;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    KeyValues& one = *sequences[i].held;
    const int position = one.length++;
    grow(one.keys.rows, one.length, {1, heads.kv_heads, 1, shape.key_dim}, dtype, s);
    held.push_back(*one.keys.rows);
    if (!shape.in_keys) {
      grow(one.values.rows, one.length, {1, heads.kv_heads, 1, shape.value_dim}, dtype, s);
      held.push_back(*one.values.rows);
    }
    places.insert(places.end(), {position, one.keys.rows->shape(2), first + static_cast<int>(i)});
  }
  const int count = static_cast<int>(sequences.size());
  const int compiled_for = static_cast<int>(std::bit_ceil(sequences.size()));
  std::vector<mx::array> inputs{q, k, v, places_of(std::move(places))};
  const std::size_t each = held.size() / sequences.size();
  for (int i = 0; i < compiled_for; ++i) {
    const auto from = held.begin() + static_cast<std::ptrdiff_t>(i < count ? i * each : 0);
    inputs.insert(inputs.end(), from, from + static_cast<std::ptrdiff_t>(each));
  }
  static CudaKernels kernels;
  return kernels
      .run(
          {query_heads, heads.kv_heads, shape.key_dim, shape.value_dim, heads.window, shape.in_keys, count,
           compiled_for, std::bit_cast<int>(heads.scale), number_of(dtype)},
          [&] { return describe(shape, heads, dtype, count, compiled_for); }, inputs,
          {{count, query_heads * shape.value_dim}}, {dtype}, s)
      .front();
}

}  // namespace tandem::kernels
