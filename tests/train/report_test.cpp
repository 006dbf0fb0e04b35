#include "train/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace tandem::train {
namespace {

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(Report, HasACurveForWhatHasTwoPoints) {
  const auto page = html_report("a <b>", {{"Model", "m & n"}},
                                {{{"step", 10}, {"train_loss", 2.5}, {"learning_rate", 1e-4}},
                                 {{"step", 10}, {"valid_loss", 2.0}},
                                 {{"step", 20}, {"train_loss", 1.5}, {"learning_rate", 1e-4}}});
  EXPECT_EQ(count(page, "<svg"), 2u);  // losses, and a rate that does not move
  EXPECT_EQ(count(page, "a &lt;b&gt;"), 2u);
  EXPECT_EQ(count(page, "m &amp; n"), 1u);
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_EQ(page.find("inf"), std::string::npos);
}

TEST(Report, OfSeveralNumbersForAStepTheLastCounts) {
  const auto points = [](const std::string& page) {
    const auto begin = page.find("points=\"") + 8;
    return page.substr(begin, page.find('"', begin) - begin);
  };
  const auto line = [](int step, double loss) {
    return nlohmann::json{{"step", step}, {"train_loss", loss}};
  };
  const auto twice = html_report("", {}, {line(1, 9), line(2, 9), line(1, 2), line(2, 1)});
  EXPECT_EQ(points(twice), points(html_report("", {}, {line(1, 2), line(2, 1)})));
}

TEST(Report, NothingYetIsAPageWithoutCurves) { EXPECT_EQ(count(html_report("t", {}, {}), "<svg"), 0u); }

TEST(Report, OneValueIsAPoint) {
  const auto page = html_report("t", {}, {{{"step", 1}, {"train_loss", 1.25}}});
  EXPECT_EQ(count(page, "<svg"), 1u);
  EXPECT_EQ(count(page, "<circle class=\"a\""), 1u);
  EXPECT_EQ(count(page, "Loss of training</td><td>1.2500, after step 1<"), 1u);
}

}  // namespace
}  // namespace tandem::train
