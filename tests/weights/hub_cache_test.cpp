#include "weights/hub_cache.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;

TEST(ModelName, HasItsParts) {
  const auto plain = parse_model_name("deepseek-ai/DeepSeek-V2.5");
  EXPECT_EQ(plain.id(), "deepseek-ai/DeepSeek-V2.5");
  EXPECT_EQ(plain.revision_or_main(), "main");
  EXPECT_EQ(parse_model_name("a/b@refs/pr/1").revision, "refs/pr/1");
  EXPECT_EQ(parse_model_name("a/b@v1.0").revision, "v1.0");
}

TEST(ModelName, RefusesWhatIsNone) {
  for (const char* text :
       {"",       "a",      "a/",       "/b",      "a/b/c",   "../b",   "a/..",     ".a/b",
        "a/b..c", "a--b/c", "a/b--c",   "a b/c",   "a/b@",    "a/b@..", "a/b@../x", "a/b@x/..",
        "a/b@/x", "a/b@x/", "a/b@x//y", "a/b@./x", "a/b@x y", "a/b\n"}) {
    EXPECT_THROW(parse_model_name(text), InputError) << text;
  }
}

TEST(PlainPath, StaysWithin) {
  for (const char* path : {"a", "a/b.json", "a b/ü", "..a/b..", ".hidden"}) {
    EXPECT_TRUE(is_plain_path(path)) << path;
  }
  for (const char* path :
       {"", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\\b", "a\nb", "a\x7f"}) {
    EXPECT_FALSE(is_plain_path(path)) << path;
  }
  EXPECT_FALSE(is_plain_path(std::string(250, 'a')));
}

class FindCommit : public testing::Test {
 protected:
  FindCommit() {
    add("refs/main", "1111111aaa");
    add("refs/refs/pr/1", "1111111bbb");
    add("refs/gone", "3333333");
    add("refs/evil", "../../..");
    for (const char* commit : {"1111111aaa", "1111111bbb", "2222222ccc"}) {
      fs::create_directories(folder_.snapshots() / commit);
    }
  }
  ~FindCommit() override { fs::remove_all(folder_.path); }

  void add(const char* path, const char* text) {
    fs::create_directories((folder_.path / path).parent_path());
    std::ofstream(folder_.path / path) << text;
  }

  HubFolder folder_{fs::temp_directory_path() / ("tandem-hub-" + std::to_string(::getpid()))};
};

TEST_F(FindCommit, GoesByReferenceCommitOrItsFirstDigits) {
  const std::pair<const char*, const char*> rows[] = {{"main", "1111111aaa"},
                                                      {"refs/pr/1", "1111111bbb"},
                                                      {"2222222ccc", "2222222ccc"},
                                                      {"2222222", "2222222ccc"},
                                                      {"1111111", ""},
                                                      {"222222", ""},
                                                      {"gone", ""},
                                                      {"evil", ""},
                                                      {"other", ""}};
  for (const auto& [revision, commit] : rows) {
    EXPECT_EQ(find_commit(folder_, revision).value_or(""), commit) << revision;
  }
}

}  // namespace
}  // namespace tandem::weights
