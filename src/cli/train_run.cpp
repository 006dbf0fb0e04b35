#include "cli/train_run.h"

#include <fmt/format.h>

#include "cli/interrupt.h"
#include "cli/progress_bar.h"
#include "cli/terminal.h"

namespace tandem::cli {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

std::string describe_recomputed(int every) {
  if (every == 0) return "no layer is recomputed: there is memory enough";
  return every == 1 ? "every layer is recomputed" : fmt::format("of {} layers one is recomputed", every);
}

}  // namespace

bool TrainRun::train(cluster::Conductor& conductor, train::Batches batches,
                     const std::vector<train::Sequence>& valid) {
  conductor_ = &conductor;
  const int done = last_checkpoint(flags_);
  if (done > 0) {
    conductor.carry_out({{"restore", {{"file", checkpoint_file(flags_, done).string()}}}});
    batches.skip(done * flags_.accumulation);
    note("going on after step {}\n", done);
  }
  nll_ = seconds_ = link_s_ = 0;
  tokens_ = 0;
  first_ = done + 1;
  start_ = Clock::now();
  for (int i = first_; i <= flags_.iters; ++i) {
    const bool last = i == flags_.iters;
    if (i == 1) evaluate(0, valid);
    step(i, batches);
    if (i % flags_.report_every == 0 || last) report(i);
    if (i % flags_.evaluate_every == 0 || last) evaluate(i, valid);
    const bool stopped = InterruptGuard::interrupted();
    if (stopped || i % flags_.save_every == 0 || last) save(i);
    if (stopped) return last;
  }
  return true;
}

json TrainRun::summary() const {
  return {{"out", flags_.out},         {"iterations", flags_.iters}, {"tokens", all_tokens_},
          {"train_loss", last_loss_},  {"valid_loss", last_valid_},  {"tokens_per_s", last_speed_},
          {"peak_bytes", peak_bytes_}, {"skipped_steps", skipped_}};
}

void TrainRun::step(int number, train::Batches& batches) {
  json micro = json::array();
  for (int i = 0; i < flags_.accumulation; ++i) micro.push_back(cluster::sequences_to_json(batches.next()));
  rate_ = train::learning_rate(flags_.schedule, number, flags_.iters);
  const json done =
      conductor_->carry_out({{"step", {{"batches", std::move(micro)}, {"learning_rate", rate_}}}});
  peak_bytes_ = done["peak_bytes"];
  if (number == first_ && flags_.training.recomputed_every == cluster::Training::by_memory)
    note("--grad-checkpoint=auto: {}\n", describe_recomputed(done["recomputed_every"]));
  if (done["skipped"]) {
    ++skipped_;
    note("step {}: the gradient is not finite; the step is left out on every rank\n", number);
    return;
  }
  nll_ += done["sum_nll"].get<double>();
  norm_ = done["gradient_norm"];
  tokens_ += done["tokens"].get<std::int64_t>();
  seconds_ += done["seconds"].get<double>();
  link_s_ += done["link_s"].get<double>();
}

void TrainRun::report(int number) {
  if (tokens_ == 0) return;
  last_loss_ = nll_ / static_cast<double>(tokens_);
  last_speed_ = static_cast<double>(tokens_) / seconds_;
  all_tokens_ += tokens_;
  const std::chrono::duration<double> past = Clock::now() - start_;
  const double left = past.count() / (number - first_ + 1) * (flags_.iters - number);
  fmt::print(
      stderr, "{}\n",
      fmt::format("step {:>{}} of {}  loss {:.4f}  rate {:.2e}  norm {:.3f}  {:.0f} tokens/s  link {:.0f} %  "
                  "memory {}  {} left",
                  number, std::to_string(flags_.iters).size(), flags_.iters, last_loss_, rate_, norm_,
                  last_speed_, 100 * link_s_ / seconds_, format_bytes(peak_bytes_),
                  format_time_left(left, 1)));
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

void TrainRun::evaluate(int number, const std::vector<train::Sequence>& valid) {
  const auto each = static_cast<std::size_t>(flags_.batch_size);
  const std::size_t count =
      flags_.evaluate_batches < 0
          ? valid.size()
          : std::min(valid.size(), each * static_cast<std::size_t>(flags_.evaluate_batches));
  double nll = 0;
  std::int64_t tokens = 0;
  for (std::size_t first = 0; first < count; first += each) {
    const auto at = [&](std::size_t i) { return valid.begin() + static_cast<std::ptrdiff_t>(i); };
    const json done = conductor_->carry_out(
        {{"evaluate",
          {{"sequences", cluster::sequences_to_json({at(first), at(std::min(count, first + each))})}}}});
    if (done["sum_nll"].is_null()) {
      note(
          "step {}: the validation loss is not finite: the run has diverged; go on from an earlier result "
          "with a smaller --learning-rate\n",
          number);
      last_valid_ = not_there;
      return;
    }
    nll += done["sum_nll"].get<double>();
    tokens += done["tokens"].get<std::int64_t>();
  }
  if (tokens == 0) return;
  last_valid_ = nll / static_cast<double>(tokens);
  note("step {:>{}} of {}  validation loss {:.4f}\n", number, std::to_string(flags_.iters).size(),
       flags_.iters, last_valid_);
  log_.note({{"step", number}, {"valid_loss", last_valid_}});
}

// The result so far, and the checkpoint to go on from, in place of the one before.
void TrainRun::save(int number) {
  conductor_->carry_out({{"save", {{"file", weights_file(flags_).string()}, {"dtype", dtype_}}}});
  conductor_->carry_out({{"keep", {{"file", checkpoint_file(flags_, number).string()}}}});
  remove_checkpoints_before(flags_, number);
  log_.write_report();
}

}  // namespace tandem::cli
