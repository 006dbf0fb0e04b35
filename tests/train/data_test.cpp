#include "train/data.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "base/error.h"

namespace tandem::train {
namespace {

namespace fs = std::filesystem;

std::vector<Sequence> numbered(int count) {
  std::vector<Sequence> all;
  for (int i = 0; i < count; ++i) all.push_back({std::vector<int>(static_cast<std::size_t>(3 + i), i), 1});
  return all;
}

TEST(PartOf, GivesEachRankTokensByItsShare) {
  std::vector<Sequence> sequences;
  for (int i = 0; i < 60; ++i)
    sequences.push_back({std::vector<int>(static_cast<std::size_t>(5 + i % 7), i), 1});
  std::vector<std::size_t> tokens;
  std::vector<int> seen;
  for (int rank = 0; rank < 3; ++rank) {
    tokens.push_back(0);
    for (const auto& one : part_of(sequences, {0.6, 0.1, 0.3}, rank)) {
      tokens.back() += one.ids.size();
      seen.push_back(one.ids.front());
    }
  }
  std::sort(seen.begin(), seen.end());
  for (int i = 0; i < 60; ++i) EXPECT_EQ(seen.at(i), i);
  EXPECT_EQ(seen.size(), 60U);
  const double all = static_cast<double>(tokens[0] + tokens[1] + tokens[2]);
  EXPECT_NEAR(tokens[0] / all, 0.6, 0.03);
  EXPECT_NEAR(tokens[1] / all, 0.1, 0.03);
  EXPECT_EQ(part_of({{{1, 2}, 1}}, {1, 1}, 1).size(), 0U);
}

TEST(Batches, EachEpochHasEverySequenceOnceInAnotherOrder) {
  Batches batches(numbered(11), 2, 7);
  ASSERT_EQ(batches.in_an_epoch(), 6);
  std::vector<std::vector<int>> orders;
  for (int epoch = 0; epoch < 2; ++epoch) {
    std::vector<int> order;
    for (int i = 0; i < 6; ++i) {
      for (const auto& one : batches.next()) order.push_back(one.ids.front());
    }
    EXPECT_EQ(std::set<int>(order.begin(), order.end()).size(), 11u);
    orders.push_back(order);
  }
  EXPECT_NE(orders[0], orders[1]);
}

TEST(Batches, SkipsToWhereNextWouldBe) {
  Batches read(numbered(11), 2, 7), skipped(numbered(11), 2, 7);
  for (int i = 0; i < 8; ++i) read.next();
  skipped.skip(8);
  EXPECT_EQ(read.next().front().ids, skipped.next().front().ids);
}

TEST(Batches, NoneHasMoreRowsThanTheLongestTextsTogether) {
  std::vector<Sequence> texts;
  for (const std::size_t length : {3, 9, 1, 5, 0, 7}) texts.push_back({std::vector<int>(length, 4)});
  EXPECT_EQ(Batches(texts, 2, 7).most_rows(), 8 + 6);
  EXPECT_EQ(Batches(texts, 100, 7).most_rows(), 2 + 8 + 4 + 6);
  EXPECT_EQ(Batches(texts, 2, 7).longest_row(), 8);
}

TEST(Batches, HaveSequencesOfLikeLengthOthersEachEpoch) {
  Batches batches(numbered(64), 8, 7);
  std::set<std::set<int>> met;
  for (int epoch = 0; epoch < 2; ++epoch) {
    for (int i = 0; i < 8; ++i) {
      const auto& batch = batches.next();
      std::set<int> own;
      for (const auto& one : batch) own.insert(one.ids.front());
      EXPECT_EQ(own.size(), 8u);
      EXPECT_EQ(*own.rbegin() - *own.begin(), 7);  // fewer than are sorted at a time
      met.insert(own);
    }
  }
  Batches many(numbered(600), 8, 7);
  std::set<std::vector<int>> first, second;
  for (int i = 0; i < 150; ++i) {
    std::vector<int> own;
    for (const auto& one : many.next()) own.push_back(one.ids.front());
    EXPECT_LT(*std::max_element(own.begin(), own.end()) - *std::min_element(own.begin(), own.end()), 200);
    (i < 75 ? first : second).insert(own);
  }
  EXPECT_NE(first, second);
}

class TextReaderTest : public testing::Test {
 protected:
  std::vector<Sequence> read(const std::string& text, TextOptions options) {
    const fs::path file = fs::path(testing::TempDir()) / "train_data_test.jsonl";
    std::ofstream(file) << text;
    return TextReader(tokenizer_, chat_, 2048, std::move(options)).read(file);
  }

  const fs::path model_ = fs::path(TANDEM_SOURCE_DIR) / "assets/demo-model";
  std::optional<text::Tokenizer> tokenizer_{std::in_place, model_};
  std::optional<text::ChatTemplate> chat_ = text::ChatTemplate::load(model_);
};

TEST_F(TextReaderTest, MasksThePrompt) {
  const std::string line = R"({"prompt": "What is 2 + 2?", "completion": "4"})";
  const auto whole = read(line, {}), masked = read(line, {.mask_prompt = true});
  EXPECT_EQ(whole.front().ids, masked.front().ids);
  EXPECT_EQ(whole.front().loss_from, 1);
  const auto& one = masked.front();
  const std::vector<int> answer(one.ids.begin() + one.loss_from, one.ids.end());
  EXPECT_EQ(tokenizer_->decode(answer, true), "4");
}

TEST_F(TextReaderTest, EndsATextAndCutsALongOne) {
  const auto ended = read(R"({"text": "Once upon a time"})", {.end_ids = {1}});
  EXPECT_EQ(ended.front().ids.back(), 1);
  EXPECT_EQ(read(R"({"text": "Once upon a time"})", {.longest = 3}).front().ids.size(), 3u);
}

TEST_F(TextReaderTest, SkipsAndNamesBadLinesIfAsked) {
  const fs::path file = fs::path(testing::TempDir()) / "train_data_bad.jsonl";
  std::ofstream(file) << "{\"ids\": [1, 2]}\n{\n{\"messages\": [{\"role\": \"robot\", \"content\": \"a\"}]}\n"
                      << "{\"text\": \"\xff\"}\n{\"ids\": [1]}\n{\"ids\": [1, 2, 3]}\n";
  TextReader reader(tokenizer_, chat_, 2048, {.skip_bad = true});
  EXPECT_EQ(reader.read(file).size(), 2u);
  EXPECT_EQ(reader.without_loss(), 1);
  ASSERT_EQ(reader.skipped().size(), 3u);
  EXPECT_NE(reader.skipped()[0].find("line 2"), std::string::npos);
  EXPECT_NE(reader.skipped()[1].find("line 3: role \"robot\""), std::string::npos) << reader.skipped()[1];
  EXPECT_NE(reader.skipped()[2].find("line 4"), std::string::npos);
}

TEST_F(TextReaderTest, NamesTheLine) {
  try {
    read("{\"ids\": [1, 2]}\n\n{\"ids\": [1, 2048]}\n", {});
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("line 3: id 2048"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace tandem::train
