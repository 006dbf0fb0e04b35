#include "cli/train_run.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/limits.h"
#include "cli/interrupt.h"
#include "cli/progress_bar.h"
#include "cli/terminal.h"
#include "cluster/train_worker.h"

namespace tandem::cli {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

std::string describe_recomputed(int every) {
  if (every == 0) return "no layer is recomputed: there is memory enough";
  return every == 1 ? "every layer is recomputed" : fmt::format("of {} layers one is recomputed", every);
}

}  // namespace

// Waits no longer than somebody who presses Ctrl-C twice.
json TrainRun::carry_out(const json& order) {
  return conductor_->carry_out(order, [] {
    if (InterruptGuard::insists()) throw Interrupted{};
  });
}

void TrainRun::begin(train::Batches& batches) {
  saved_ = last_checkpoint(flags_);
  first_ = saved_ + 1;
  taken_ = left_out_in_a_row_ = 0;
  if (saved_ > 0) {
    carry_out({{"restore", {{"file", checkpoint_file(flags_, saved_).string()}}}});
    batches.skip(std::int64_t{saved_} * flags_.accumulation);
    if (saved_ < flags_.iters) note("going on after step {}\n", saved_);
  } else if (!flags_.first_adapter.empty()) {
    const fs::path given = fs::absolute(flags_.first_adapter);
    carry_out(
        {{"load", {{"file", (fs::is_directory(given) ? given / "adapters.safetensors" : given).string()}}}});
  }
  log_.go_on_after(saved_);
}

bool TrainRun::train(cluster::Conductor& conductor, train::Batches batches,
                     const std::vector<train::Sequence>& valid, const std::vector<train::Sequence>& test) {
  conductor_ = &conductor;
  nll_ = seconds_ = link_s_ = 0;
  tokens_ = 0;
  begin(batches);
  start_ = Clock::now();
  const struct Clearer {
    StatusLine& line;
    ~Clearer() { line.clear(); }
  } clearer{line_};
  for (int i = first_; i <= flags_.iters; ++i) {
    const bool last = i == flags_.iters;
    if (i == 1) evaluate(0, valid);
    step(i, batches);
    show(i);
    if (i % flags_.report_every == 0 || last) report(i);
    if (i % flags_.evaluate_every == 0 || last) evaluate(i, valid);
    const bool stopped = InterruptGuard::interrupted();
    if (stopped || i % flags_.save_every == 0 || last) save(i);
    if (last && left_out_in_a_row_ > 0 && saved_ < first_) diverged(i, "no gradient was finite");
    if (left_out_in_a_row_ == 0 && (stopped || last)) remove_checkpoints_before(flags_, saved_);
    if (stopped) return last && test.empty();
  }
  if (skipped_ > 0) note("{} left out in all\n", counted(skipped_, "step"));
  if (!test.empty() && flags_.test_batches != 0) evaluate_test(test);
  return true;
}

// What is not finite takes no place of what was. An older checkpoint is there until a step was taken from the
// last one: where none could be, that goes, and the result is the older one's again.
void TrainRun::diverged(int number, const std::string& what) {
  const bool others = saved_ >= first_ || has_checkpoint_before(flags_, saved_);
  if (taken_ == 0 && saved_ > 0 && others) {
    fs::remove(checkpoint_file(flags_, saved_));
    saved_ = last_checkpoint(flags_);
  }
  std::string rest = "nothing was saved: begin again with a smaller --learning-rate";
  if (saved_ == 0) {
    fs::remove(weights_file(flags_));
  } else {
    carry_out({{"restore", {{"file", checkpoint_file(flags_, saved_).string()}}}});
    save_result();
    rest = fmt::format(
        "its result and checkpoint are those of step {}: go on by --resume with a smaller "
        "--learning-rate",
        saved_);
  }
  throw InputError(fmt::format("step {}: {}: the run has diverged; {}", number, what, rest));
}

json TrainRun::summary() const {
  return {{"out", flags_.out},           {"iterations", flags_.iters}, {"tokens", all_tokens_},
          {"train_loss", last_loss_},    {"valid_loss", last_valid_},  {"test_loss", test_loss_},
          {"tokens_per_s", last_speed_}, {"peak_bytes", peak_bytes_},  {"skipped_steps", skipped_}};
}

void TrainRun::step(int number, train::Batches& batches) {
  json micro = json::array();
  for (int i = 0; i < flags_.accumulation; ++i) micro.push_back(cluster::sequences_to_json(batches.next()));
  rate_ = train::learning_rate(flags_.schedule, number, flags_.iters);
  const json done = carry_out({{"step", {{"batches", std::move(micro)}, {"learning_rate", rate_}}}});
  peak_bytes_ = done["peak_bytes"];
  if (number == first_ && flags_.training.recomputed_every == cluster::Training::by_memory)
    say("--grad-checkpoint=auto: {}\n", describe_recomputed(done["recomputed_every"]));
  if (done["skipped"]) {
    ++skipped_;
    const bool scaled = flags_.training.dtype == "float16";
    say("step {}: the gradient is not finite{}; the step is left out on every rank\n", number,
        scaled ? " in float16, whose loss is scaled by half as much from now on" : "");
    const int most = scaled ? limits::steps_left_out_of_float16 : limits::steps_left_out;
    if (++left_out_in_a_row_ == most)
      diverged(number, fmt::format("no gradient of {} steps was finite", most));
    return;
  }
  left_out_in_a_row_ = 0;
  // What the last checkpoint holds can be gone on from: the one before is not needed any more.
  if (taken_++ == 0) remove_checkpoints_before(flags_, saved_);
  nll_ += done["sum_nll"].get<double>();
  norm_ = done["gradient_norm"];
  tokens_ += done["tokens"].get<std::int64_t>();
  seconds_ += done["seconds"].get<double>();
  link_s_ += done["link_s"].get<double>();
}

std::string TrainRun::time_left(int number) const {
  const std::chrono::duration<double> past = Clock::now() - start_;
  return format_time_left(past.count() / (number - first_ + 1) * (flags_.iters - number), 1) + " left";
}

void TrainRun::show(int number) {
  constexpr std::size_t cells = 10;
  const std::size_t columns = stderr_size().columns;
  if (tokens_ == 0 || columns < 2 * cells) return;
  const auto tokens = static_cast<double>(tokens_);
  const auto text = fmt::format("step {} of {}  {}  loss {:.3f}  {:.0f} tok/s  link {:.0f} %  {}", number,
                                flags_.iters, time_left(number), nll_ / tokens, tokens / seconds_,
                                100 * link_s_ / seconds_, format_bytes(peak_bytes_));
  line_.draw(bar(static_cast<double>(number) / flags_.iters, cells) + "  " +
             text.substr(0, columns - cells - 3));
}

void TrainRun::report(int number) {
  if (tokens_ == 0) return;
  last_loss_ = nll_ / static_cast<double>(tokens_);
  last_speed_ = static_cast<double>(tokens_) / seconds_;
  say("step {:>{}} of {}  loss {:.4f}  rate {:.2e}  norm {:.3f}  {:.0f} tokens/s  link {:.0f} %  memory {}  "
      "{}\n",
      number, std::to_string(flags_.iters).size(), flags_.iters, last_loss_, rate_, norm_, last_speed_,
      100 * link_s_ / seconds_, format_bytes(peak_bytes_), time_left(number));
  all_tokens_ += tokens_;
  log_.note({{"step", number},
             {"train_loss", last_loss_},
             {"learning_rate", rate_},
             {"gradient_norm", norm_},
             {"tokens_per_s", last_speed_},
             {"link_share", link_s_ / seconds_},
             {"peak_bytes", peak_bytes_}});
  nll_ = seconds_ = link_s_ = 0;
  tokens_ = 0;
}

double TrainRun::loss_of(const std::vector<train::Sequence>& texts, int batches) {
  const auto each = static_cast<std::size_t>(flags_.batch_size);
  const std::size_t count =
      batches < 0 ? texts.size() : std::min(texts.size(), each * static_cast<std::size_t>(batches));
  double nll = 0;
  std::int64_t tokens = 0;
  for (std::size_t first = 0; first < count; first += each) {
    line_.draw(fmt::format("evaluating: {} of {}", first, counted(count, "text")));
    const auto at = [&](std::size_t i) { return texts.begin() + static_cast<std::ptrdiff_t>(i); };
    const json done = carry_out(
        {{"evaluate",
          {{"sequences", cluster::sequences_to_json({at(first), at(std::min(count, first + each))})}}}});
    if (done["sum_nll"].is_null()) return not_there;
    nll += done["sum_nll"].get<double>();
    tokens += done["tokens"].get<std::int64_t>();
  }
  return nll / static_cast<double>(tokens);
}

void TrainRun::evaluate(int number, const std::vector<train::Sequence>& valid) {
  if (valid.empty() || flags_.evaluate_batches == 0) return;
  last_valid_ = loss_of(valid, flags_.evaluate_batches);
  if (!std::isfinite(last_valid_) && number == 0)
    throw InputError(
        "the validation loss is not finite before any step: the model, or the adapter, has such numbers");
  if (!std::isfinite(last_valid_)) diverged(number, "the validation loss is not finite");
  say("step {:>{}} of {}  validation loss {:.4f}\n", number, std::to_string(flags_.iters).size(),
      flags_.iters, last_valid_);
  log_.note({{"step", number}, {"valid_loss", last_valid_}});
}

void TrainRun::evaluate_test(const std::vector<train::Sequence>& texts) {
  test_loss_ = loss_of(texts, flags_.test_batches);
  say("test loss {:.4f}, perplexity {:.3f}\n", test_loss_, std::exp(test_loss_));
  if (std::isfinite(test_loss_)) log_.note({{"step", flags_.iters}, {"test_loss", test_loss_}});
}

void TrainRun::save_result() {
  carry_out({{"save", {{"file", weights_file(flags_).string()}, {"dtype", dtype_}}}});
}

// The result so far, and the checkpoint to go on from; of steps that changed nothing neither.
void TrainRun::save(int number) {
  if (taken_ > 0) {
    save_result();
    carry_out({{"keep", {{"file", checkpoint_file(flags_, number).string()}}}});
    saved_ = number;
    taken_ = 0;
  }
  log_.write_report();
}

}  // namespace tandem::cli
