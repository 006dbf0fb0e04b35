#include "models/attention.h"

#include <gtest/gtest.h>

#include <climits>

namespace tandem::models {
namespace {

TEST(ExpandedFormTest, PaysFromWhereAChunkCostsLess) {
  struct Row {
    const char* name;
    int latent, nope, rope, value;
  };
  for (const Row& r : {Row{"DeepSeek-V2 and V3", 512, 128, 64, 128}, Row{"a small one", 64, 32, 16, 32},
                       Row{"uneven", 24, 16, 8, 12}}) {
    ModelConfig config;
    config.sizes.latent = r.latent;
    config.sizes.head_dim = r.nope + r.rope;
    config.sizes.rope = r.rope;
    config.sizes.value_dim = r.value;
    // Of a chunk, for each position that it sees.
    const auto absorbed = [&](int rows) { return rows * (2 * r.latent + r.rope); };
    const auto expanded = [&](int rows) {
      return r.latent * (r.nope + r.value) + rows * (r.nope + r.rope + r.value);
    };
    const int from = expanded_from(config);
    EXPECT_LT(expanded(from), absorbed(from)) << r.name;
    EXPECT_GE(expanded(from - 1), absorbed(from - 1)) << r.name;
  }
}

TEST(ExpandedFormTest, IsNotForEveryModel) {
  ModelConfig config;
  EXPECT_EQ(expanded_from(config), INT_MAX);  // no latents
  config.sizes = {.head_dim = 40, .latent = 32, .rope = 8, .value_dim = 32};
  EXPECT_EQ(expanded_from(config), INT_MAX);  // latents no larger than keys and values
}

}  // namespace
}  // namespace tandem::models
