// Every golden model of tests/golden on real worker processes, for each split, against what transformers
// computed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "cluster/group_client.h"

namespace tandem::cluster {
namespace {

using nlohmann::json;

// Both sides compute in float32 from the same rounded weights and differ in the order of sums alone. A
// product of length n errs typically by √n·2⁻²⁴ of its largest terms; 3 layers of 7 products, n ≤ 112, logits
// up to 10 give 21·√112·2⁻²⁴·10 = 1.3e-4 at worst (measured: up to 1.4e-5).
constexpr double logit_tolerance = 1.3e-4;
// tiny-llama-mlx-4bit's golden logits are themselves up to 3.2e-3 away from what transformers computes in
// float32 and in float64 (which agree to 5e-6); its 6 layers, n = 704 and logits up to 20 add 1.3e-3 by the
// same estimate.
constexpr double tiny_llama_tolerance = 4.5e-3;
// The demo model: 6 layers of 11 products, n <= 512, logits up to 20.
constexpr double demo_tolerance = 1.8e-3;
// The same of tiny-deepseek-v3's, which are up to 9.21e-3 away from what transformers computes in float32.
constexpr double tiny_deepseek_tolerance = 9.4e-3;
constexpr double nll_tolerance = 1e-4;

// Under a sanitizer a step takes up to 20 times as long, and what it can find differs little between cases.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#elif defined(__has_feature)
constexpr bool sanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool sanitized = false;
#endif

struct Split {
  const char* name;
  std::vector<std::vector<double>> stages;  // the shares of each one's ranks
  bool sanitized;                           // run under a sanitizer too
};

const std::vector<Split>& splits() {
  static const std::vector<Split> table{{"1 rank", {{1}}, true},
                                        {"2 ranks", {{1, 1}}, false},
                                        {"3 ranks", {{1, 1, 1}}, false},
                                        {"4 ranks", {{1, 1, 1, 1}}, false},
                                        {"2 unequal", {{0.7, 0.3}}, false},
                                        {"3 unequal", {{1, 5, 2}}, true},
                                        {"2 stages", {{1}, {1}}, false},
                                        {"3 stages", {{1}, {1}, {1}}, false},
                                        {"2 x 2", {{1, 1}, {1, 1}}, false},
                                        {"2 ranks, then 1", {{3, 1}, {1}}, true}};
  return table;
}

struct Golden {
  std::string name;
  std::filesystem::path model;
  std::filesystem::path file;
  double logit_tolerance;
};

void PrintTo(const Golden& golden, std::ostream* out) { *out << golden.name; }

// Of tests/golden, and of the folder that TANDEM_GOLDEN_MODELS names, of models too large for this
// repository.
std::vector<Golden> golden_models() {
  std::vector<std::filesystem::path> folders{source_folder() / "tests/golden"};
  if (const char* more = std::getenv("TANDEM_GOLDEN_MODELS")) folders.emplace_back(more);
  std::vector<Golden> found;
  std::vector<std::filesystem::directory_entry> entries;
  for (const auto& folder : folders)
    for (const auto& entry : std::filesystem::directory_iterator(folder)) entries.push_back(entry);
  for (const auto& entry : entries) {
    const auto file = entry.path() / "golden.json";
    const std::string name = entry.path().filename().string();
    const bool known = std::any_of(found.begin(), found.end(), [&](auto& one) { return one.name == name; });
    if (known || !std::filesystem::exists(file)) continue;
    const bool here = std::filesystem::exists(entry.path() / "config.json");
    found.push_back({name, here ? entry.path() : source_folder() / "assets/demo-model", file,
                     name == "demo-model"             ? demo_tolerance
                     : name.starts_with("tiny-llama") ? tiny_llama_tolerance
                     : name == "tiny-deepseek-v3"     ? tiny_deepseek_tolerance
                                                      : logit_tolerance});
  }
  std::sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.name < b.name; });
  return found;
}

double largest_difference(const std::vector<float>& a, const json& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    most = std::max(most, std::abs(a[i] - b[i].get<double>()));
  }
  return most;
}

// Whether the model has as many layers and parts as the split needs.
bool fits(const std::filesystem::path& model, const Split& split) {
  const auto config = models::load_config(model);
  if (config.layers < static_cast<int>(split.stages.size())) return false;
  try {
    parallel::validate(local_plan(split.stages, config.layers), config.divisible());
  } catch (const InputError&) {
    return false;
  }
  return true;
}

class GoldenTest : public testing::TestWithParam<Golden> {};

// How many of a model's cases one split is tried with: all, but where that is slow (packed weights with
// float32 activations take the loops of reference) only on one rank, which decides whether the arithmetic is
// right.
std::size_t cases_tried(const Golden& golden, const Split& split, std::size_t all) {
  constexpr std::size_t few = 6, fewest = 2;
  if (sanitized) return std::min(all, fewest);
  const bool slow = golden.name.starts_with("tiny-") && golden.name.ends_with("bit");
  return slow && &split != &splits().front() ? std::min(all, few) : all;
}

// Mean negative log-likelihoods of one text.
void check_perplexity(Conductor& conductor, const json& perplexity) {
  auto ids = perplexity["ids"].get<std::vector<int>>();
  const auto mean = [&] {
    const auto nll = ask(conductor, engine::ScoreRequest{.ids = ids, .nll = true}).nll;
    EXPECT_EQ(nll.tokens, static_cast<int>(ids.size()) - 1);
    return nll.sum_nll / nll.tokens;
  };
  const bool has_short = perplexity.contains("first_192_mean_nll");
  if (!sanitized || !has_short) {
    EXPECT_NEAR(mean(), perplexity["mean_nll"].get<double>(), nll_tolerance);
  }
  if (has_short) {
    ids.resize(192);
    EXPECT_NEAR(mean(), perplexity["first_192_mean_nll"].get<double>(), nll_tolerance);
  }
}

// Greedy ids, last logits and likelihoods of one model on one split.
void check_split(const Golden& golden, const Split& split, const json& expected) {
  SCOPED_TRACE(golden.name + " on " + split.name);
  if ((sanitized && !split.sanitized) || !fits(golden.model, split)) return;
  const auto conductor = start_local(golden.model, split.stages);
  double most = 0;
  const auto& samples = expected["cases"];
  for (std::size_t i = 0; i < cases_tried(golden, split, samples.size()); ++i) {
    const auto& sample = samples[i];
    const auto prompt = sample["prompt_ids"].get<std::vector<int>>();
    const auto wanted = sample["greedy_ids"].get<std::vector<int>>();
    const int last = static_cast<int>(prompt.size()) - 1;
    auto scored = ask(*conductor, engine::ScoreRequest{.ids = prompt, .positions = {last}});
    most = std::max(most, largest_difference(scored.logits[last], sample["last_logits"]));
    // Without end ids, so that the end id itself is among them.
    EXPECT_EQ(ask(*conductor, greedy(prompt, static_cast<int>(wanted.size()))).tokens, wanted);
  }
  EXPECT_LE(most, golden.logit_tolerance);
  std::printf("%s, %s: largest difference of a logit %.1e\n", golden.name.c_str(), split.name, most);
  if (expected.contains("perplexity")) check_perplexity(*conductor, expected["perplexity"]);
}

TEST_P(GoldenTest, EverySplitGivesWhatTransformersGives) {
  const json expected = read_golden(GetParam().file);
  ASSERT_FALSE(expected["cases"].empty());
  for (const auto& split : splits()) check_split(GetParam(), split, expected);
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest, testing::ValuesIn(golden_models()), [](const auto& info) {
  std::string name = info.param.name;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
});

}  // namespace
}  // namespace tandem::cluster
