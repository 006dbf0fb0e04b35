// Which tokens count. Those before a token do not see those after it, so that what is left out of a text at
// its beginning is the loss of that beginning alone.
#include "train/loss.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <filesystem>

#include "kernels/products.h"
#include "models/families.h"
#include "parallel/tcp_group.h"
#include "weights/checkpoint.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

constexpr double tolerance = 1e-4;  // of the sum: float32, in another order

class LossTest : public testing::Test {
 protected:
  void SetUp() override {
    mx::set_default_device(mx::Device::cpu);
    kernels::use_activations(kernels::Activations::float32);
  }
  void TearDown() override { kernels::use_activations(kernels::Activations::automatic); }

  models::Decoder decoder() {
    const auto shard = parallel::shard_of(config_.sizes, {1}, 0);
    const weights::ShardedWeights weights(checkpoint_,
                                          models::shard_rules(config_, checkpoint_, {0, config_.layers}),
                                          config_.formats, shard, 0, config_.layers);
    return models::make_decoder(config_, shard, weights, {0, config_.layers});
  }

  static std::vector<int> ids(int length, int start) {
    std::vector<int> found(static_cast<std::size_t>(length));
    for (int i = 0; i < length; ++i) found[i] = 2 + (start + i * i) % 150;
    return found;
  }

  // The loss, and its gradients by the first layer's norm and the last one.
  std::vector<mx::array> sums(const std::vector<Sequence>& texts) {
    const auto loss = [&](const std::vector<mx::array>& norms) {
      models::Decoder own = decoder();
      own.layers.front().attention_norm = norms[0];
      own.norm = norms[1];
      return summed_nll(own, texts, {parallel::single_rank_group()}, /*recomputed_every=*/0);
    };
    const models::Decoder model = decoder();
    const std::vector<mx::array> norms{mx::astype(model.layers.front().attention_norm, mx::float32),
                                       mx::astype(*model.norm, mx::float32)};
    auto [nll, gradients] = mx::value_and_grad(loss, {0, 1})(norms);
    return {nll, gradients[0], gradients[1]};
  }

  void expect_difference(const std::vector<Sequence>& some, const std::vector<Sequence>& all,
                         const std::vector<Sequence>& beginnings) {
    const auto found = sums(some), whole = sums(all), left_out = sums(beginnings);
    for (std::size_t i = 0; i < found.size(); ++i) {
      const mx::array wanted = mx::subtract(whole[i], left_out[i]);
      const float size = mx::max(mx::abs(whole[i])).item<float>();
      ASSERT_GT(size, 0);
      EXPECT_LE(mx::max(mx::abs(mx::subtract(found[i], wanted))).item<float>(), tolerance * size) << i;
    }
  }

 private:
  std::filesystem::path folder_ =
      std::filesystem::path(TANDEM_SOURCE_DIR) / "tests/golden/deepseek-v3-no-q-lora";
  models::ModelConfig config_ = models::load_config(folder_);
  weights::Checkpoint checkpoint_{folder_};
};

TEST_F(LossTest, ATextCountsFromWhereItIsToldTo) {
  const auto text = ids(40, 3);
  for (const int from : {2, 17, 39}) {
    SCOPED_TRACE(from);
    expect_difference({{text, from}}, {{text}}, {{{text.begin(), text.begin() + from}}});
  }
}

TEST_F(LossTest, TextsOfABatchCountEachFromItsOwn) {
  const auto a = ids(30, 1), b = ids(50, 7), c = ids(20, 11);
  expect_difference({{a, 12}, {b, 1}, {c, 19}}, {{a}, {b}, {c}},
                    {{{a.begin(), a.begin() + 12}}, {{c.begin(), c.begin() + 19}}});
}

TEST_F(LossTest, MoreTokensThanLogitsAreInMemoryAtATime) {
  std::vector<Sequence> some, all, beginnings;
  for (int i = 0; i < 6; ++i) {
    const auto text = ids(150, i);
    some.push_back({text, 20});  // 780 count
    all.push_back({text});
    beginnings.push_back({{text.begin(), text.begin() + 20}});
  }
  expect_difference(some, all, beginnings);
}

TEST_F(LossTest, NoneCounts) {
  const auto found = sums({{ids(5, 0), 5}});
  for (const auto& one : found) EXPECT_EQ(mx::max(mx::abs(one)).item<float>(), 0);
}

}  // namespace
}  // namespace tandem::train
