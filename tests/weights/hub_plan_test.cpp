#include "weights/hub_plan.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace tandem::weights {
namespace {

using nlohmann::json;

const std::string sha256(64, 'a'), sha1(40, 'b'), commit(40, 'c');

json listing_of(json files) { return {{"sha", commit}, {"siblings", std::move(files)}}; }

TEST(Listing, HasSizesAndChecksums) {
  const auto listing = listing_from_json(
      listing_of({{{"rfilename", "big"}, {"size", 5u}, {"blobId", sha1}, {"lfs", {{"sha256", sha256}}}},
                  {{"rfilename", "tree"}, {"size", 5u}, {"blobId", sha1}, {"lfs", {{"oid", sha256}}}},
                  {{"rfilename", "a/small"}, {"size", 0u}, {"blobId", sha1}, {"lfs", nullptr}},
                  {{"rfilename", "bare"}},
                  {{"rfilename", "odd"}, {"size", -1}, {"blobId", "../x"}}}));
  EXPECT_EQ(listing.commit, commit);
  ASSERT_EQ(listing.files.size(), 5);
  EXPECT_EQ(listing.files[0].checksum, (Checksum{ChecksumKind::sha256, sha256}));
  EXPECT_EQ(listing.files[1].checksum, (Checksum{ChecksumKind::sha256, sha256}));
  EXPECT_EQ(listing.files[2].checksum, (Checksum{ChecksumKind::git_sha1, sha1}));
  EXPECT_EQ(listing.files[2].size, 0);
  for (const auto& file : {listing.files[3], listing.files[4]}) EXPECT_FALSE(file.size || file.checksum);
}

TEST(Listing, RefusesWhatIsNone) {
  const json wrong[] = {nullptr,
                        json::array(),
                        json::object(),
                        {{"sha", "main"}, {"siblings", json::array()}},
                        {{"sha", commit}},
                        {{"sha", commit}, {"siblings", 3}},
                        listing_of({"name"}),
                        listing_of({{{"path", "a"}}}),
                        listing_of({{{"rfilename", "../a"}}}),
                        listing_of({{{"rfilename", "/a"}}}),
                        listing_of({{{"rfilename", "a"}, {"size", 1ull << 60}}}),
                        listing_of({{{"rfilename", "a"}}, {{"rfilename", "a"}}})};
  for (const auto& answer : wrong) EXPECT_THROW(listing_from_json(answer), DownloadError) << answer;
}

std::vector<std::string> selected(const std::vector<std::string>& paths,
                                  const std::vector<std::string>& include) {
  HubListing listing{commit};
  for (const auto& path : paths) listing.files.push_back({path});
  std::vector<std::string> result;
  for (const auto& file : select_files(listing, include, {"a", "b"})) result.push_back(file.path);
  return result;
}

TEST(SelectFiles, TakesWhatRunningNeedsOrWhatMatches) {
  const std::vector<std::string> all{"README.md",         "config.json",
                                     "model.safetensors", "consolidated.safetensors",
                                     "tokenizer.model",   "onnx/model.safetensors",
                                     "x.jinja",           "model.bin",
                                     "merges.txt"};
  using Paths = std::vector<std::string>;
  EXPECT_EQ(selected(all, {}),
            (Paths{"config.json", "model.safetensors", "tokenizer.model", "x.jinja", "merges.txt"}));
  EXPECT_EQ(selected(all, {"*.md", "*.bin"}), (Paths{"README.md", "model.bin"}));
  EXPECT_EQ(selected(all, {"*.safetensors"}),
            (Paths{"model.safetensors", "consolidated.safetensors", "onnx/model.safetensors"}));
  EXPECT_EQ(selected(all, {"*"}), all);
  EXPECT_THROW(selected(all, {"*.gguf"}), InputError);
  EXPECT_THROW(selected({"config.json", "model.bin"}, {}), InputError);
}

TEST(Urls, EscapeWhatTheyMust) {
  EXPECT_EQ(listing_url("https://h", parse_model_name("a/b@refs/pr/1")),
            "https://h/api/models/a/b/revision/refs%2Fpr%2F1?blobs=true");
  EXPECT_EQ(file_url("https://h", {"a", "b"}, commit, "x y/ü?#%.json"),
            "https://h/a/b/resolve/" + commit + "/x%20y/%C3%BC%3F%23%25.json");
}

TEST(Endpoint, IsAnAddress) {
  EXPECT_EQ(checked_endpoint("https://hub.example/"), "https://hub.example");
  EXPECT_EQ(checked_endpoint("http://[::1]:80/hf//"), "http://[::1]:80/hf");
  for (const char* wrong :
       {"", "hub.example", "ftp://x", "https://", "file:///x", "http://u:p@h", "http://h?x"}) {
    EXPECT_THROW(checked_endpoint(wrong), InputError) << wrong;
  }
}

TEST(Checksums, OfAFile) {
  const auto of = [](ChecksumKind kind, std::string_view text) {
    Hasher hasher(kind, text.size());
    hasher.update(text.substr(0, text.size() / 2));
    hasher.update(text.substr(text.size() / 2));
    return hasher.finish();
  };
  // sha256sum; git hash-object.
  EXPECT_EQ(of(ChecksumKind::sha256, "abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(of(ChecksumKind::git_sha1, ""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
  EXPECT_EQ(of(ChecksumKind::git_sha1, "hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
}

TEST(Checksums, InAnEtag) {
  EXPECT_EQ(checksum_from_etag('"' + sha256 + '"'), (Checksum{ChecksumKind::sha256, sha256}));
  EXPECT_EQ(checksum_from_etag("W/\"" + sha1 + '"'), (Checksum{ChecksumKind::git_sha1, sha1}));
  for (const std::string wrong : {"", "\"", "\"abc\"", "../../etc"}) EXPECT_FALSE(checksum_from_etag(wrong));
  EXPECT_FALSE(checksum_from_hex(std::string(40, '/')));
}

}  // namespace
}  // namespace tandem::weights
