#include "weights/safetensors.h"

#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "base/error.h"

namespace tandem::weights {
namespace {

constexpr std::uint64_t data_begin = 1000;

// The words of the InputError that parsing gives; empty where it is accepted. `data_bytes` of data follow.
std::string refusal(const std::string& header, std::uint64_t data_bytes = 100) {
  try {
    parse_safetensors_header(header, data_begin, data_begin + data_bytes);
    return "";
  } catch (const InputError& error) {
    return error.what();
  }
}

std::string tensor(const std::string& shape, const std::string& offsets, const std::string& dtype = "F32") {
  return R"({"t":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

TEST(SafetensorsHeader, ReadsTensors) {
  const auto table = parse_safetensors_header(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
      R"("b":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})",
      data_begin, data_begin + 16);
  ASSERT_EQ(table.size(), 2U);
  EXPECT_EQ(table.at("a").begin, data_begin + 4);
  EXPECT_EQ(table.at("a").end, data_begin + 16);
  EXPECT_EQ(table.at("a").shape, (std::vector<std::int64_t>{2, 3}));
}

TEST(SafetensorsHeader, RefusesEveryLie) {
  struct Row {
    std::string header;
    const char* words;
  };
  const Row rows[] = {
      {"", "no valid JSON"},
      {"[1]", "no JSON object"},
      {"{\"t\":", "no valid JSON"},
      {std::string(100'000, '['), "nests deeper"},
      {"{\"t\":1}", "lacks"},
      {"{\"t\":{\"dtype\":\"F32\"}}", "lacks"},
      {tensor("[2]", "[0,8]", "F13"), "F13"},
      {tensor("[-2]", "[0,8]"), "shape"},
      {tensor("[2.5]", "[0,8]"), "shape"},
      {tensor("\"2\"", "[0,8]"), "shape"},
      {tensor("[1,1,1,1,1,1,1,1,2]", "[0,8]"), "shape"},
      {tensor("[4294967296]", "[0,8]"), "shape"},
      {tensor("[2]", "[8,0]"), "truncated"},
      {tensor("[2]", "[96,104]"), "truncated"},
      {tensor("[2]", "[0,99999999999999]"), "truncated"},
      {tensor("[2]", "[18446744073709551608,18446744073709551615]"), "truncated"},
      {tensor("[2]", "[-8,0]"), "data_offsets"},
      {tensor("[2]", "[0]"), "data_offsets"},
      {tensor("[2]", "[0,4]"), "does not take"},
      {tensor("[2147483647,2147483647,4]", "[0,8]"), "does not take"},
      {tensor("[2147483647,2147483647,2147483647]", "[0,8]"), "does not take"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       "overlap"},
  };
  for (const auto& row : rows) {
    const auto words = refusal(row.header);
    EXPECT_NE(words.find(row.words), std::string::npos) << row.header.substr(0, 120) << "\n" << words;
  }
  EXPECT_EQ(refusal(tensor("[2]", "[0,8]")), "");
  EXPECT_EQ(refusal(tensor("[0,5]", "[8,8]")), "");
}

// Headers damaged by seed: whatever is accepted lies inside the file.
TEST(SafetensorsHeader, DamagedHeadersAreRefusedOrTrue) {
  std::mt19937 random(2);
  const std::string valid =
      R"({"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[5],"data_offsets":[12,32]}})";
  const std::string alphabet = "0123456789[]{},:\"-.eEFB ";
  int refused = 0, accepted = 0;
  for (int round = 0; round < 30'000; ++round) {
    std::string header = valid;
    for (auto damages = 1 + random() % 3; damages > 0; --damages) {
      const auto at = random() % header.size();
      switch (random() % 4) {
        case 0:
          header[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          header[at] = static_cast<char>(random());
          break;
        case 2:
          header.insert(at, 1 + random() % 4, alphabet[random() % alphabet.size()]);
          break;
        default:
          header.erase(at, 1 + random() % 5);
      }
      if (header.empty()) header = "{";
    }
    try {
      for (const auto& [name, info] : parse_safetensors_header(header, data_begin, data_begin + 32)) {
        EXPECT_GE(info.begin, data_begin);
        EXPECT_LE(info.end, data_begin + 32);
        EXPECT_LE(info.begin, info.end);
      }
      ++accepted;
    } catch (const InputError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(accepted, 100);
}

class SafetensorsFileTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("tandem-safetensors-" + std::to_string(::testing::UnitTest::GetInstance()->random_seed()) +
               std::to_string(reinterpret_cast<std::uintptr_t>(this)));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path write(const std::string& bytes) {
    const auto path = folder_ / "x.safetensors";
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  static std::string length_of(std::uint64_t length) {
    return {reinterpret_cast<const char*>(&length), sizeof(length)};
  }

  std::filesystem::path folder_;
};

TEST_F(SafetensorsFileTest, ReadsBytes) {
  const std::string header = tensor("[2]", "[0,8]");
  const SafetensorsFile file(write(length_of(header.size()) + header + "abcdefgh"));
  std::string bytes(8, 0);
  file.read(file.tensors().at("t").begin, 8, bytes.data());
  EXPECT_EQ(bytes, "abcdefgh");
  EXPECT_THROW(file.read(file.tensors().at("t").begin, 9, bytes.data()), InputError);
}

TEST_F(SafetensorsFileTest, RefusesDamagedFiles) {
  const std::string header = tensor("[2]", "[0,8]");
  for (const auto& bytes :
       {std::string(), std::string("abc"), length_of(1ULL << 62) + header,
        length_of(header.size() + 1) + header, length_of(header.size()) + header + "abcdefg"}) {
    EXPECT_THROW(SafetensorsFile(write(bytes)), InputError) << bytes.size();
  }
  EXPECT_THROW(SafetensorsFile{folder_}, InputError);
  EXPECT_THROW(SafetensorsFile{folder_ / "missing"}, InputError);
}

}  // namespace
}  // namespace tandem::weights
