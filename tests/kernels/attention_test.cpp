#include "kernels/attention.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <cmath>
#include <cstring>

#include "kernels/attention_by_mlx.h"
#include "kernels/fixture.h"
#include "kernels/gradients.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

std::vector<float> floats(mx::array array) {
  array = mx::contiguous(array);
  mx::eval(array);
  return {array.data<float>(), array.data<float>() + array.size()};
}

struct Qkv {
  mx::array q, k, v;

  Qkv rows(int first, int end) const {
    const auto part = [&](const mx::array& x) { return mx::slice(x, {first, 0}, {end, x.shape(1)}); };
    return {part(q), part(k), part(v)};
  }
};

// Scores of up to about ±4, so that the softmax is far from even.
Qkv random_rows(int tokens, const AttentionHeads& heads, int dim, int value_dim) {
  const int queries = static_cast<int>(heads.kv_of_query.size());
  return {mx::multiply(mx::random::normal({tokens, queries * dim}), mx::array(2.0F)),
          mx::random::normal({tokens, heads.kv_heads * dim}),
          mx::random::normal({tokens, heads.kv_heads * value_dim})};
}

AttentionHeads grouped(int queries, int kv_heads, int dim, int window = 0) {
  AttentionHeads heads{{}, kv_heads, 1 / std::sqrt(static_cast<float>(dim)), window};
  for (int h = 0; h < queries; ++h) heads.kv_of_query.push_back(h * kv_heads / queries);
  return heads;
}

mx::array run(const Qkv& x, const AttentionHeads& heads, const std::vector<AttentionRows>& sequences) {
  return attention(x.q, x.k, x.v, heads, sequences, mx::Device::cpu);
}

// By definition, in double: one row of one head.
std::vector<double> expected_row(const Qkv& x, const AttentionHeads& heads, int dim, int value_dim, int token,
                                 int head) {
  const auto q = floats(x.q), k = floats(x.k), v = floats(x.v);
  const int queries = static_cast<int>(heads.kv_of_query.size()), kv = heads.kv_of_query[head];
  const int first = heads.window > 0 ? std::max(0, token + 1 - heads.window) : 0;
  std::vector<double> result(value_dim), scores;
  double sum = 0;
  for (int t = first; t <= token; ++t) {
    double score = 0;
    for (int d = 0; d < dim; ++d) {
      score +=
          static_cast<double>(q[(token * queries + head) * dim + d]) * k[(t * heads.kv_heads + kv) * dim + d];
    }
    scores.push_back(std::exp(score * heads.scale));
    sum += scores.back();
  }
  for (int t = first; t <= token; ++t) {
    for (int d = 0; d < value_dim; ++d) {
      result[d] += scores[t - first] / sum * v[(t * heads.kv_heads + kv) * value_dim + d];
    }
  }
  return result;
}

// One latent of `dim` numbers a position, of which the first `value_dim` are the values of all heads.
AttentionHeads latent_heads(int queries, int dim, int value_dim) {
  AttentionHeads heads = grouped(queries, 1, dim);
  heads.value_dim = value_dim;
  return heads;
}

Qkv random_latent_rows(int tokens, const AttentionHeads& heads, int dim) {
  Qkv x = random_rows(tokens, heads, dim, heads.value_dim);
  x.v = mx::slice(x.k, {0, 0}, {tokens, heads.value_dim});
  return x;
}

// The root of the mean square of the differences, over that of `exact`.
double relative_error(const std::vector<float>& values, const std::vector<float>& exact) {
  double square = 0, difference = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    square += static_cast<double>(exact[i]) * exact[i];
    difference += (static_cast<double>(values[i]) - exact[i]) * (values[i] - exact[i]);
  }
  return std::sqrt(difference / square);
}

class AttentionTest : public KernelsTest {};

// float32 sums of up to 600 weights that add to one, of scores that are off by 64 roundings of at most 8.
constexpr double tolerance = 5e-5;

TEST_F(AttentionTest, LatentsAreKeysAndValues) {
  struct Row {
    int queries, dim, value_dim, tokens;
  };
  for (const Row& r : {Row{4, 80, 64, 300}, Row{5, 32, 24, 40}, Row{16, 576, 512, 2}, Row{3, 31, 7, 520}}) {
    SCOPED_TRACE(testing::Message() << r.queries << " " << r.dim << " " << r.tokens);
    const auto heads = latent_heads(r.queries, r.dim, r.value_dim);
    const Qkv x = random_latent_rows(r.tokens, heads, r.dim);
    const auto y = floats(run({x.q, x.k, x.k}, heads, {{r.tokens}}));
    for (const int token : {0, r.tokens / 2, r.tokens - 1}) {
      for (const int head : {0, r.queries - 1}) {
        const auto expected = expected_row(x, heads, r.dim, r.value_dim, token, head);
        for (int d = 0; d < r.value_dim; ++d) {
          ASSERT_NEAR(y[(token * r.queries + head) * r.value_dim + d], expected[d], 2e-4) << token;
        }
      }
    }
    // In chunks, on several threads: the same bits, and one latent a position held.
    set_threads(3);
    KeyValues held;
    std::vector<float> chunks;
    for (int first = 0; first < r.tokens; first += 37) {
      const Qkv part = x.rows(first, std::min(r.tokens, first + 37));
      const auto some = floats(run({part.q, part.k, part.k}, heads, {{part.q.shape(0), &held}}));
      chunks.insert(chunks.end(), some.begin(), some.end());
    }
    EXPECT_EQ(chunks, y);
    const std::size_t blocks = (r.tokens + 255) / 256, dims = (r.dim + 31) / 32 * 32;
    EXPECT_EQ(held.bytes(), blocks * 256 * dims * sizeof(float));
    set_threads(1);
  }
}

TEST_F(AttentionTest, EqualsItsDefinition) {
  struct Row {
    int queries, kv_heads, dim, value_dim, tokens, window;
  };
  for (const Row& r : {Row{1, 1, 64, 64, 1, 0}, Row{8, 2, 64, 64, 40, 0}, Row{6, 2, 20, 20, 300, 0},
                       Row{3, 3, 33, 17, 70, 0}, Row{4, 1, 96, 64, 513, 0}, Row{8, 2, 32, 32, 600, 37},
                       Row{40, 1, 16, 16, 9, 0}, Row{2, 2, 64, 64, 520, 256}}) {
    SCOPED_TRACE(testing::Message() << r.queries << " " << r.kv_heads << " " << r.dim << " " << r.tokens);
    const auto heads = grouped(r.queries, r.kv_heads, r.dim, r.window);
    const Qkv x = random_rows(r.tokens, heads, r.dim, r.value_dim);
    const auto y = floats(run(x, heads, {{r.tokens}}));
    ASSERT_EQ(y.size(), static_cast<std::size_t>(r.tokens) * r.queries * r.value_dim);
    for (const int token : {0, r.tokens / 3, r.tokens / 2, r.tokens - 1}) {
      for (const int head : {0, r.queries / 2, r.queries - 1}) {
        const auto expected = expected_row(x, heads, r.dim, r.value_dim, token, head);
        for (int d = 0; d < r.value_dim; ++d) {
          ASSERT_NEAR(y[(token * r.queries + head) * r.value_dim + d], expected[d], tolerance) << token;
        }
      }
    }
  }
}

TEST_F(AttentionTest, HeadsMayBeGroupedUnevenly) {
  AttentionHeads heads{{0, 0, 0, 1}, 2, 0.2F, 0};
  const Qkv x = random_rows(30, heads, 24, 24);
  const auto y = floats(run(x, heads, {{30}}));
  for (int head = 0; head < 4; ++head) {
    const auto expected = expected_row(x, heads, 24, 24, 29, head);
    for (int d = 0; d < 24; ++d) ASSERT_NEAR(y[(29 * 4 + head) * 24 + d], expected[d], tolerance);
  }
}

// Chunks, single tokens, threads, neighbours in the batch, instruction sets: all the same bits.
TEST_F(AttentionTest, ARowDependsOnItsSequenceAlone) {
  constexpr int tokens = 530;
  for (const int window : {0, 100}) {
    const auto heads = grouped(6, 2, 48, window);
    const Qkv x = random_rows(tokens, heads, 48, 48), other = random_rows(77, heads, 48, 48);
    use_loops("portable");
    const auto whole = floats(run(x, heads, {{tokens}}));
    for (const char* name : {"portable", "avx2", "avx512", "neon", "neon_i8mm"}) {
      if (!find_loops(name)) continue;
      use_loops(name);
      for (const int chunk : {1, 7, 128, 255, 256, tokens}) {
        set_threads(chunk % 3 + 1);
        KeyValues held;
        std::vector<float> parts;
        for (int first = 0; first < tokens; first += chunk) {
          const int end = std::min(tokens, first + chunk);
          const auto part = floats(run(x.rows(first, end), heads, {{end - first, &held}}));
          parts.insert(parts.end(), part.begin(), part.end());
        }
        ASSERT_EQ(held.length, tokens);
        ASSERT_EQ(std::memcmp(parts.data(), whole.data(), whole.size() * sizeof(float)), 0) << name << chunk;
      }
      const Qkv both{mx::concatenate({other.q, x.q}, 0), mx::concatenate({other.k, x.k}, 0),
                     mx::concatenate({other.v, x.v}, 0)};
      const auto together = floats(run(both, heads, {{77}, {tokens}}));
      ASSERT_EQ(std::memcmp(together.data() + together.size() - whole.size(), whole.data(),
                            whole.size() * sizeof(float)),
                0)
          << name;
    }
  }
}

constexpr KeyValueFormat int8 = KeyValueFormat::int8;

// What int8 holds of a group of 32 numbers: each off by half a scale at most, a scale is the group's largest
// magnitude over 127, rounded up to bfloat16.
void expect_rounded(const float* held, const float* x, int count) {
  float top = 0;
  for (int i = 0; i < count; ++i) top = std::max(top, std::fabs(x[i]));
  const float half_scale = top / 127 * (1 + 1.0F / 128) / 2;
  for (int i = 0; i < count; ++i) ASSERT_NEAR(held[i], x[i], half_scale * 1.0001F) << i;
}

TEST_F(AttentionTest, PanelsHoldWhatWasPutWithinHalfAScale) {
  for (const char* name : {"portable", "avx2", "avx512", "neon", "neon_i8mm"}) {
    if (!find_loops(name)) continue;
    use_loops(name);
    for (const KeyValueShape& shape : {KeyValueShape{2, 33, 20}, KeyValueShape{3, 64, 64},
                                       KeyValueShape{1, 80, 48, true}, KeyValueShape{1, 31, 7, true}}) {
      KeyValuePanels panels(shape, int8);
      panels.reserve(300);
      const auto k = floats(mx::random::normal({300, shape.heads * shape.key_dim}));
      auto v = floats(mx::random::normal({300, shape.heads * shape.value_dim}));
      for (int p = 0; p < 300; ++p)
        panels.put(p, k.data() + p * shape.heads * shape.key_dim,
                   v.data() + p * shape.heads * shape.value_dim);
      KeyValuePanels::Scratch scratch;
      for (const int position : {0, 31, 32, 255, 256, 299}) {
        for (int head = 0; head < shape.heads; ++head) {
          const int row = position % 256;
          const auto block = panels.read(position / 256, head, row + 1, scratch);
          std::vector<float> keys, values;
          for (int d = 0; d < shape.key_dim; ++d)
            keys.push_back(block.keys[(row / 32 * panels.key_dims() + d) * 32 + row % 32]);
          for (int d = 0; d < shape.value_dim; ++d)
            values.push_back(block.values[(d / 32 * 256 + row) * 32 + d % 32]);
          const float* put = k.data() + (position * shape.heads + head) * shape.key_dim;
          for (int g = 0; g < shape.key_dim; g += 32)
            expect_rounded(keys.data() + g, put + g, std::min(32, shape.key_dim - g));
          if (shape.values_in_keys) {  // the same numbers
            for (int d = 0; d < shape.value_dim; ++d) ASSERT_EQ(values[d], keys[d]);
            continue;
          }
          put = v.data() + (position * shape.heads + head) * shape.value_dim;
          for (int g = 0; g < shape.value_dim; g += 32)
            expect_rounded(values.data() + g, put + g, std::min(32, shape.value_dim - g));
        }
      }
    }
  }
}

// With int8 too, a row's bits depend neither on chunks, threads nor instruction sets.
TEST_F(AttentionTest, Int8RowsDependOnTheirSequenceAlone) {
  constexpr int tokens = 300;
  for (const bool latent : {false, true}) {
    const auto heads = latent ? latent_heads(6, 80, 48) : grouped(6, 2, 48);
    const Qkv x = latent ? random_latent_rows(tokens, heads, 80) : random_rows(tokens, heads, 48, 48);
    std::vector<float> whole;
    for (const char* name : {"portable", "avx2", "avx512", "neon", "neon_i8mm"}) {
      if (!find_loops(name)) continue;
      use_loops(name);
      for (const int chunk : {tokens, 1, 77, 256}) {
        set_threads(chunk % 3 + 1);
        KeyValues held{.format = int8};
        std::vector<float> parts;
        for (int first = 0; first < tokens; first += chunk) {
          const int end = std::min(tokens, first + chunk);
          const Qkv part = x.rows(first, end);
          const auto some =
              floats(run({part.q, part.k, latent ? part.k : part.v}, heads, {{end - first, &held}}));
          parts.insert(parts.end(), some.begin(), some.end());
        }
        if (whole.empty()) whole = parts;
        ASSERT_EQ(parts, whole) << name << " " << chunk;
      }
    }
    // Near what float32 gives. The largest of 32 normal numbers is about 2.3, so a code is off by 2.3 / 127 /
    // sqrt(12) = 0.5 % of their deviation: that much in the values, twice it in the scores of queries of
    // deviation 2, 1.2 % in all.
    const auto exact = floats(run({x.q, x.k, latent ? x.k : x.v}, heads, {{tokens}}));
    const double off = relative_error(whole, exact);
    EXPECT_GT(off, 0);
    EXPECT_LT(off, 0.02);
  }
}

// What a GPU runs, here on MLX's CPU stream: MLX's affine codes in place of ours.
TEST_F(AttentionTest, MlxHoldsInt8TooAndGrowsByBlocks) {
  const mx::Stream cpu = mx::default_stream(mx::Device::cpu);
  struct Row {
    int queries, dim, value_dim, tokens;
    bool latent;
  };
  for (const Row& r : {Row{6, 64, 64, 300, false}, Row{4, 20, 24, 40, false}, Row{6, 80, 48, 300, true}}) {
    const auto heads = r.latent ? latent_heads(r.queries, r.dim, r.value_dim) : grouped(r.queries, 2, r.dim);
    const Qkv x = r.latent ? random_latent_rows(r.tokens, heads, r.dim)
                           : random_rows(r.tokens, heads, r.dim, r.value_dim);
    const auto v = [&](const Qkv& rows) { return r.latent ? rows.k : rows.v; };
    const auto exact = floats(attention_by_mlx(x.q, x.k, v(x), heads, {{r.tokens}}, cpu));
    KeyValues held{.format = int8};
    std::vector<float> parts;
    for (int first = 0; first < r.tokens; first += 100) {
      const Qkv part = x.rows(first, std::min(r.tokens, first + 100));
      const auto some =
          floats(attention_by_mlx(part.q, part.k, v(part), heads, {{part.q.shape(0), &held}}, cpu));
      parts.insert(parts.end(), some.begin(), some.end());
    }
    const double off = relative_error(parts, exact);
    EXPECT_GT(off, 0);
    EXPECT_LT(off, 0.02);
    const KeyValueShape shape{heads.kv_heads, r.dim, r.value_dim, r.latent};
    const std::size_t blocks = (r.tokens + 255) / 256;
    EXPECT_EQ(held.bytes(), blocks * block_bytes_on_gpu(shape, int8, sizeof(float)));
  }
}

TEST_F(AttentionTest, Int8TakesAQuarterAndItsScales) {
  const auto heads = grouped(4, 2, 64);
  for (const auto format : {KeyValueFormat::plain, int8}) {
    KeyValues held{.format = format};
    mx::eval(run(random_rows(200, heads, 64, 64), heads, {{200, &held}}));
    const std::size_t numbers = 256 * 2 * 128;
    EXPECT_EQ(held.bytes(), format == int8 ? numbers + numbers / 32 * 2 : numbers * sizeof(float));
    EXPECT_EQ(KeyValuePanels({2, 64, 64}, format).block_bytes(), held.bytes());
  }
}

TEST_F(AttentionTest, GrowsByBlocksAndCountsItsBytes) {
  const auto heads = grouped(4, 2, 32);
  KeyValues held;
  EXPECT_EQ(held.bytes(), 0U);
  for (int step = 1; step <= 3; ++step) {
    mx::eval(run(random_rows(200, heads, 32, 32), heads, {{200, &held}}));
    EXPECT_EQ(held.length, 200 * step);
    EXPECT_EQ(held.bytes(), (200U * step + 255) / 256 * 256 * 2 * 64 * sizeof(float));
  }
}

TEST_F(AttentionTest, WhatIsNotFiniteShowsInTheRowsThatSeeIt) {
  const auto heads = grouped(2, 1, 16);
  const Qkv x = random_rows(40, heads, 16, 16);
  for (const float bad : {std::nanf(""), HUGE_VALF}) {
    auto k = floats(x.k);
    k[20 * 16 + 3] = bad;
    for (const auto format : {KeyValueFormat::plain, int8}) {
      KeyValues held{.format = format};
      const auto y = floats(run({x.q, mx::array(k.data(), {40, 16}), x.v}, heads, {{40, &held}}));
      for (int i = 0; i < 20 * 32; ++i) ASSERT_TRUE(std::isfinite(y[i])) << i;
      int strange = 0;
      for (int i = 20 * 32; i < 40 * 32; ++i) strange += std::isnan(y[i]) ? 1 : 0;
      EXPECT_GT(strange, 0);
    }
  }
}

TEST_F(AttentionTest, GradientsAreThoseOfTheDefinition) {
  const auto heads = grouped(4, 2, 8, 5);
  const Qkv x = random_rows(12, heads, 8, 8);
  const mx::array c = mx::random::normal({12, 32});
  const auto loss = [&](const std::vector<mx::array>& in) {
    return mx::sum(mx::multiply(run({in[0], in[1], in[2]}, heads, {{5}, {7}}), c));
  };
  expect_gradients(loss, {x.q, x.k, x.v}, 2e-2);
}

// Of several sequences of odd lengths, past a block of queries and a panel of keys.
TEST_F(AttentionTest, GradientsAreThoseOfMlx) {
  const mx::Stream cpu = mx::default_stream(mx::Device::cpu);
  struct Row {
    int queries, kv_heads, dim, value_dim, window;
    bool latent = false;
  };
  for (const Row& r : {Row{6, 2, 20, 36, 0}, Row{4, 4, 33, 7, 0}, Row{4, 2, 64, 64, 50}, Row{9, 1, 40, 40, 0},
                       Row{12, 1, 96, 64, 0, true}}) {
    const auto heads = r.latent ? latent_heads(r.queries, r.dim, r.value_dim)
                                : grouped(r.queries, r.kv_heads, r.dim, r.window);
    for (const std::vector<AttentionRows>& sequences :
         {std::vector<AttentionRows>{{301}}, {{1}, {37}, {2}, {64}, {131}}}) {
      int rows = 0;
      for (const auto& sequence : sequences) rows += sequence.tokens;
      const Qkv x =
          r.latent ? random_latent_rows(rows, heads, r.dim) : random_rows(rows, heads, r.dim, r.value_dim);
      const mx::array c = mx::random::normal({rows, r.queries * r.value_dim});
      mx::eval(x.q, x.k, x.v, c);
      const std::vector<mx::array> at = r.latent ? std::vector{x.q, x.k} : std::vector{x.q, x.k, x.v};
      const auto gradients = [&](auto attend) {
        const auto loss = [&](const std::vector<mx::array>& in) {
          return mx::sum(mx::multiply(attend(in[0], in[1], r.latent ? in[1] : in[2]), c));
        };
        return mx::value_and_grad(loss, r.latent ? std::vector{0, 1} : std::vector{0, 1, 2})(at).second;
      };
      const auto expected = gradients([&](const auto& q, const auto& k, const auto& v) {
        return attention_by_mlx(q, k, v, heads, sequences, cpu);
      });
      std::vector<std::vector<float>> first;
      for (const int count : {1, 3}) {
        set_threads(count);
        const auto found = gradients([&](const auto& q, const auto& k, const auto& v) {
          return attention(q, k, v, heads, sequences, cpu);
        });
        for (std::size_t i = 0; i < found.size(); ++i) {
          const auto here = floats(found[i]);
          EXPECT_LT(relative_error(here, floats(expected[i])), 1e-5) << r.queries << " " << r.dim << " " << i;
          if (count == 1)
            first.push_back(here);
          else
            EXPECT_EQ(here, first[i]);
        }
      }
      set_threads(1);
    }
  }
}

// Of heads that read unevenly, one of which nobody reads, after a sequence without rows.
TEST_F(AttentionTest, GradientsOfUnevenHeads) {
  const mx::Stream cpu = mx::default_stream(mx::Device::cpu);
  const AttentionHeads heads{{0, 0, 0, 1}, 3, 0.3F};
  const Qkv x = random_rows(9, heads, 8, 8);
  const auto product = [&](bool ours) {
    return [&, ours](const std::vector<mx::array>& in) {
      return std::vector{ours ? attention(in[0], in[1], in[2], heads, {{0}, {9}}, cpu)
                              : attention_by_mlx(in[0], in[1], in[2], heads, {{9}}, cpu)};
    };
  };
  const mx::array c = mx::random::normal({9, 32});
  const auto found = mx::vjp(product(true), {x.q, x.k, x.v}, {c}).second,
             expected = mx::vjp(product(false), {x.q, x.k, x.v}, {c}).second;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(mx::allclose(found[i], expected[i], 1e-5, 1e-5).item<bool>()) << i;
}

TEST_F(AttentionTest, RefusesRowsThatNoSequenceHas) {
  const auto heads = grouped(2, 1, 8);
  const Qkv x = random_rows(4, heads, 8, 8);
  KeyValues held;
  EXPECT_THROW(run(x, heads, {{3, &held}}), std::invalid_argument);
  // On a GPU too; nothing is computed, so that none need be there.
  EXPECT_THROW(attention(x.q, x.k, x.v, heads, {{3, &held}}, mx::Stream(0, mx::Device::gpu)),
               std::invalid_argument);
  EXPECT_EQ(held.length, 0);
  EXPECT_THROW(run({x.k, x.k, x.v}, heads, {{4}}), std::invalid_argument);
  EXPECT_THROW(run(x, {{0, 1}, 1}, {{4}}), std::invalid_argument);
  mx::eval(run(x, heads, {{4, &held}}));
  EXPECT_THROW(run(random_rows(4, grouped(2, 1, 16), 16, 16), grouped(2, 1, 16), {{4, &held}}),
               std::invalid_argument);
}

}  // namespace
}  // namespace tandem::kernels
