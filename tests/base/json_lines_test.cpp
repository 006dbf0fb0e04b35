#include "base/json_lines.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "base/limits.h"

namespace tandem {
namespace {

std::vector<nlohmann::json> objects_of(JsonLineReader& reader) {
  std::vector<nlohmann::json> objects;
  while (auto object = reader.next()) objects.push_back(std::move(*object));
  return objects;
}

TEST(JsonLines, CutAtAnyByte) {
  const std::string stream = "{\"a\":1}\n\n{\"b\":\"ü\\n\"}\n{\"c\":[1,2]}\n";
  for (std::size_t cut = 0; cut <= stream.size(); ++cut) {
    JsonLineReader reader;
    reader.feed(stream.substr(0, cut));
    auto objects = objects_of(reader);
    reader.feed(stream.substr(cut));
    for (auto& object : objects_of(reader)) objects.push_back(std::move(object));
    ASSERT_EQ(objects.size(), 3U) << cut;
    EXPECT_EQ(objects[0]["a"], 1);
    EXPECT_EQ(objects[1]["b"], "ü\n");
    EXPECT_EQ(objects[2]["c"].size(), 2U);
  }
}

TEST(JsonLines, RefusesWhatIsNoObject) {
  for (const char* line : {"garbage", "[1]", "1", "{\"a\":}", "{\"a\":\"\xff\"}", "{} {}", "nul"}) {
    JsonLineReader reader;
    reader.feed(std::string(line) + "\n");
    EXPECT_THROW(reader.next(), ClusterError) << line;
  }
}

TEST(JsonLines, RefusesALineWithoutEnd) {
  JsonLineReader reader;
  const std::string piece(1 << 20, 'x');
  EXPECT_THROW(
      {
        for (std::size_t fed = 0; fed <= limits::pipe_line_bytes; fed += piece.size()) {
          reader.feed(piece);
          reader.next();
        }
      },
      ClusterError);
}

TEST(JsonLines, WritesWhatItReads) {
  const nlohmann::json object{{"text", "two\nlines, half a character \xc3"}, {"ids", {1, 2}}};
  JsonLineReader reader;
  reader.feed(to_json_line(object));
  const auto read = reader.next();
  ASSERT_TRUE(read);
  EXPECT_EQ((*read)["ids"], object["ids"]);
  EXPECT_EQ((*read)["text"], "two\nlines, half a character \uFFFD");
}

TEST(JsonLines, AFaultIsToldWithoutTheLibrarysName) {
  try {
    FAIL() << "it was read as " << nlohmann::json::parse("{\"a\": }");
  } catch (const nlohmann::json::exception& error) {
    EXPECT_TRUE(json_fault(error).starts_with("parse error at line 1, column 7")) << json_fault(error);
  }
}

// Streams damaged by seed: only a ClusterError may come of them.
TEST(JsonLines, DamagedStreamsAreRefusedOrRead) {
  std::mt19937 random(1);
  const std::string valid =
      "{\"generate\":{\"id\":1,\"prompt\":[1,2,3]}}\n{\"ready\":{\"bytes\":12}}\n{\"failed\":{\"kind\":\"x\"}"
      "}\n";
  int refused = 0, read = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string stream = valid;
    for (auto damages = random() % 4; damages > 0; --damages) {
      const auto at = random() % stream.size();
      if (random() % 2 == 0)
        stream[at] = static_cast<char>(random());
      else
        stream.erase(at, random() % 8);
      if (stream.empty()) stream = "\n";
    }
    JsonLineReader reader;
    try {
      while (!stream.empty()) {
        const auto size = std::min<std::size_t>(stream.size(), 1 + random() % 32);
        reader.feed(stream.substr(0, size));
        stream.erase(0, size);
        for (const auto& object : objects_of(reader)) {
          EXPECT_TRUE(object.is_object());
          ++read;
        }
      }
    } catch (const ClusterError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(read, 1000);
}

}  // namespace
}  // namespace tandem
