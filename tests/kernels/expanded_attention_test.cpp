#include "kernels/expanded_attention.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <cmath>

#include "kernels/attention_by_mlx.h"
#include "kernels/gradients.h"
#include "kernels/pointwise.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

const mx::Device cpu = mx::Device::cpu;

std::vector<float> floats(mx::array array) {
  array = mx::contiguous(array, false, cpu);
  mx::eval(array);
  return {array.data<float>(), array.data<float>() + array.size()};
}

// Of one head.
struct Dims {
  int heads, latent, nope, rope, value;
};

enum class Kind { f32, bf16, q8, q4 };

Experts as_kind(const mx::array& weights, Kind kind) {
  if (kind == Kind::f32) return {weights, std::nullopt, {}};
  if (kind == Kind::bf16) return {mx::astype(weights, mx::bfloat16), std::nullopt, {}};
  const int bits = kind == Kind::q8 ? 8 : 4;
  const auto parts = mx::quantize(weights, 32, bits);
  return {parts[0], Affine{parts[1], parts[2], 32, bits}, {}};
}

// Weights that leave the size of what they multiply.
HeadExpansion random_expansion(const Dims& d, Kind kind) {
  const auto scaled = [&](const mx::Shape& shape) {
    return mx::multiply(mx::random::normal(shape), mx::array(1 / std::sqrt(static_cast<float>(d.latent))));
  };
  return {as_kind(scaled({d.heads, d.latent, d.nope}), kind),
          as_kind(scaled({d.heads, d.value, d.latent}), kind)};
}

HeadExpansion packed(const HeadExpansion& up) { return {pack(up.key_up), pack(up.value_up)}; }

struct Rows {
  mx::array q, k;

  Rows slice(int first, int end) const {
    return {mx::slice(q, {first, 0}, {end, q.shape(1)}), mx::slice(k, {first, 0}, {end, k.shape(1)})};
  }
};

// Scores of up to about ±4, so that the softmax is far from even.
Rows random_rows(int tokens, const Dims& d) {
  return {mx::multiply(mx::random::normal({tokens, d.heads * (d.nope + d.rope)}), mx::array(2.0F)),
          mx::random::normal({tokens, d.latent + d.rope})};
}

AttentionHeads heads_of(const Dims& d, const HeadExpansion& up) {
  return {.kv_of_query = std::vector<int>(d.heads, 0),
          .kv_heads = 1,
          .scale = 1 / std::sqrt(static_cast<float>(d.nope + d.rope)),
          .expansion = up};
}

mx::array expanded(const Rows& x, const AttentionHeads& heads, const std::vector<AttentionRows>& sequences) {
  return attention(x.q, x.k, x.k, heads, sequences, cpu);
}

mx::array absorbed(const Rows& x, const Dims& d, AttentionHeads heads,
                   const std::vector<AttentionRows>& sequences) {
  const HeadExpansion up = *heads.expansion;
  heads.expansion.reset();
  heads.value_dim = d.latent;
  const int head_dim = d.nope + d.rope;
  const mx::array q = join_heads(linear_by_head(head_part(x.q, head_dim, 0, d.nope, cpu), up.key_up, cpu),
                                 d.latent, head_part(x.q, head_dim, d.nope, head_dim, cpu), d.rope, cpu);
  return linear_by_head(attention(q, x.k, x.k, heads, sequences, cpu), up.value_up, cpu);
}

std::vector<float> in_chunks(const Rows& x, const AttentionHeads& heads, int chunk, KeyValues& held) {
  std::vector<float> all;
  for (int first = 0; first < x.q.shape(0); first += chunk) {
    const int end = std::min(x.q.shape(0), first + chunk);
    const auto some = floats(expanded(x.slice(first, end), heads, {{end - first, &held}}));
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

// The root of the mean square of the differences, over that of `exact`.
double relative_error(const std::vector<float>& values, const std::vector<float>& exact) {
  EXPECT_EQ(values.size(), exact.size());
  double square = 0, difference = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    square += static_cast<double>(exact[i]) * exact[i];
    difference += (static_cast<double>(values[i]) - exact[i]) * (values[i] - exact[i]);
  }
  return std::sqrt(difference / square);
}

class ExpandedAttentionTest : public testing::Test {
 protected:
  void TearDown() override {
    use_loops(nullptr);
    use_activations(Activations::automatic);
    set_threads(1);
  }
};

TEST_F(ExpandedAttentionTest, IsTheAbsorbedFormInAnotherOrder) {
  struct Row {
    Dims dims;
    int tokens;
    Kind kind;
  };
  for (const Row& r : {Row{{4, 64, 32, 16, 24}, 600, Kind::f32}, Row{{3, 24, 16, 8, 12}, 70, Kind::bf16},
                       Row{{2, 512, 128, 64, 128}, 300, Kind::bf16}, Row{{5, 33, 7, 3, 40}, 260, Kind::f32},
                       Row{{2, 64, 32, 8, 32}, 270, Kind::q8}, Row{{2, 64, 64, 8, 32}, 33, Kind::q4},
                       Row{{4, 8, 1, 1, 1}, 1, Kind::f32}}) {
    SCOPED_TRACE(testing::Message() << r.dims.latent << " " << r.tokens);
    const auto heads = heads_of(r.dims, packed(random_expansion(r.dims, r.kind)));
    const Rows x = random_rows(r.tokens, r.dims);
    // Float32 sums of up to 600 terms and scores of 8 off by their roundings: 1e-6 of the result, typically.
    use_activations(Activations::float32);
    const auto exact = floats(absorbed(x, r.dims, heads, {{r.tokens}}));
    EXPECT_LT(relative_error(floats(expanded(x, heads, {{r.tokens}})), exact), 1e-5);
    // What int8 and bfloat16 round: half a 127th of a group's largest number, of about 2.3 deviations, or of
    // each number 2^-9; in the expanded form of latents alone.
    use_activations(Activations::automatic);
    EXPECT_LT(relative_error(floats(expanded(x, heads, {{r.tokens}})), exact), 0.01);
  }
}

// Chunks, single tokens, threads, cuts of a head's rows, neighbours, instruction sets: all the same bits,
// with 8-bit caches too.
TEST_F(ExpandedAttentionTest, ARowDependsOnItsSequenceAlone) {
  const Dims dims{2, 64, 32, 16, 24};
  constexpr int tokens = 530;
  for (const Kind kind : {Kind::f32, Kind::q8}) {
    const auto heads = heads_of(dims, packed(random_expansion(dims, kind)));
    const Rows x = random_rows(tokens, dims), other = random_rows(77, dims);
    for (const auto format : {KeyValueFormat::plain, KeyValueFormat::int8}) {
      std::vector<float> whole;
      for (const char* name : {"portable", "avx2", "avx512", "neon", "neon_i8mm"}) {
        if (!find_loops(name)) continue;
        use_loops(name);
        for (const int chunk : {tokens, 7, 128, 256, 500}) {
          for (const int threads : {1, 7}) {
            set_threads(threads);
            KeyValues held{.format = format};
            const auto parts = in_chunks(x, heads, chunk, held);
            if (whole.empty()) whole = parts;
            ASSERT_EQ(parts, whole) << name << " " << chunk << " " << threads;
            ASSERT_EQ(held.length, tokens);
          }
        }
        KeyValues held{.format = format};
        const Rows both{mx::concatenate({other.q, x.q}, 0), mx::concatenate({other.k, x.k}, 0)};
        const auto together = floats(expanded(both, heads, {{77}, {tokens, &held}}));
        ASSERT_EQ(
            std::vector<float>(together.end() - static_cast<std::ptrdiff_t>(whole.size()), together.end()),
            whole)
            << name;
      }
    }
  }
}

// Both forms hold the same, so that an answer does not depend on its prompt's.
TEST_F(ExpandedAttentionTest, HoldsWhatTheAbsorbedFormHolds) {
  const Dims dims{3, 64, 32, 16, 24};
  const auto heads = heads_of(dims, packed(random_expansion(dims, Kind::bf16)));
  const Rows x = random_rows(300, dims), next = random_rows(2, dims);
  for (const auto format : {KeyValueFormat::plain, KeyValueFormat::int8}) {
    KeyValues by_expanded{.format = format}, by_absorbed{.format = format};
    mx::eval(expanded(x, heads, {{300, &by_expanded}}));
    mx::eval(absorbed(x, dims, heads, {{300, &by_absorbed}}));
    EXPECT_EQ(by_expanded.bytes(), by_absorbed.bytes());
    EXPECT_EQ(floats(absorbed(next, dims, heads, {{2, &by_expanded}})),
              floats(absorbed(next, dims, heads, {{2, &by_absorbed}})));
  }
}

// Memory is kept from call to call, but nothing of what was in it shows.
TEST_F(ExpandedAttentionTest, WhatIsNotFiniteStaysInItsSequence) {
  const Dims dims{2, 64, 31, 10, 24};
  const auto heads = heads_of(dims, packed(random_expansion(dims, Kind::f32)));
  const Rows x = random_rows(280, dims);
  const auto clean = floats(expanded(x, heads, {{280}}));
  const Rows bad{x.q, mx::full({280, 74}, std::nanf(""))};
  for (const float y : floats(expanded(bad, heads, {{280}}))) ASSERT_TRUE(std::isnan(y));
  EXPECT_EQ(floats(expanded(x, heads, {{280}})), clean);
  const auto part = floats(expanded(x.slice(0, 5), heads, {{5}}));
  EXPECT_EQ(part,
            std::vector<float>(clean.begin(), clean.begin() + static_cast<std::ptrdiff_t>(part.size())));
}

TEST_F(ExpandedAttentionTest, GradientsAgreeWithFiniteDifferences) {
  use_activations(Activations::float32);
  const Dims dims{3, 16, 8, 4, 6};
  const auto heads = heads_of(dims, packed(random_expansion(dims, Kind::f32)));
  const Rows x = random_rows(12, dims);
  const mx::array c = mx::random::normal({12, dims.heads * dims.value});
  const auto loss = [&](const std::vector<mx::array>& in) {
    return mx::sum(mx::multiply(expanded({in[0], in[1]}, heads, {{5}, {7}}), c));
  };
  expect_gradients(loss, {x.q, x.k}, 2e-2);
}

// What a GPU runs, here on MLX's CPU stream.
TEST_F(ExpandedAttentionTest, MlxGivesTheSame) {
  use_activations(Activations::float32);
  const mx::Stream stream = mx::default_stream(cpu);
  const Dims dims{4, 64, 32, 16, 24};
  for (const Kind kind : {Kind::f32, Kind::q8, Kind::q4}) {
    const HeadExpansion up = random_expansion(dims, kind);
    const Rows x = random_rows(300, dims);
    const auto ours = floats(expanded(x, heads_of(dims, packed(up)), {{300}}));
    for (const auto format : {KeyValueFormat::plain, KeyValueFormat::int8}) {
      KeyValues held{.format = format};
      std::vector<float> parts;
      for (int first = 0; first < 300; first += 100) {
        const Rows part = x.slice(first, first + 100);
        const auto some =
            floats(attention_by_mlx(part.q, part.k, part.k, heads_of(dims, up), {{100, &held}}, stream));
        parts.insert(parts.end(), some.begin(), some.end());
      }
      EXPECT_LT(relative_error(parts, ours), format == KeyValueFormat::plain ? 1e-5 : 0.02);
      const KeyValueShape shape{1, dims.latent + dims.rope, dims.latent, true};
      EXPECT_EQ(held.bytes(), 2 * block_bytes_on_gpu(shape, format, sizeof(float)));
    }
  }
}

TEST_F(ExpandedAttentionTest, RefusesWeightsThatDoNotFit) {
  const Dims dims{2, 64, 32, 16, 24};
  const HeadExpansion up = random_expansion(dims, Kind::f32);
  const Rows x = random_rows(4, dims);
  EXPECT_THROW(expanded(x, heads_of(dims, up), {{4}}), std::invalid_argument);  // not packed
  EXPECT_THROW(expanded(x, heads_of({3, 64, 32, 16, 24}, packed(up)), {{4}}), std::invalid_argument);
  EXPECT_THROW(expanded({x.q, x.q}, heads_of(dims, packed(up)), {{4}}), std::invalid_argument);
  auto windowed = heads_of(dims, packed(up));
  windowed.window = 3;
  EXPECT_THROW(expanded(x, windowed, {{4}}), std::invalid_argument);
}

}  // namespace
}  // namespace tandem::kernels
