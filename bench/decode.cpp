// Steps of decode on a GPU, each handed out while the one before is computed, as a lone rank does. Usage:
// bench_decode SHAPE.json 4|8|bf16 [BATCH [mlx|mlx-waits]], random weights, prompts of 256 tokens; "mlx": by
// MLX's kernels alone; "mlx-waits": and each step is handed out when the one before is done.
#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/file.h"
#include "engine/step.h"
#include "kernels/cuda_kernel.h"
#include "models/families.h"
#include "parallel/tcp_group.h"
#include "timing.h"
#include "weights/random_source.h"

namespace {

namespace mx = mlx::core;
using namespace tandem;

constexpr int prompt = 256, warm_up = 5, steps = 40;

// TB/s of reading and writing 2 GB, in the better of several turns.
double copy_speed() {
  constexpr int elements = 1 << 29;
  const mx::array x = mx::full({elements}, 1.0F, mx::float32);
  mx::eval(x);
  double best_s = 1e9;
  for (int i = 0; i < 5; ++i) {
    const double start = now_s();
    mx::array y = mx::add(x, mx::array(1.0F));
    mx::eval(y);
    best_s = std::min(best_s, now_s() - start);
  }
  return 2.0 * sizeof(float) * elements / best_s / 1e12;
}

models::Decoder random_model(const std::string& file, const std::string& bits) {
  auto json = read_json_file(file);
  json["torch_dtype"] = "bfloat16";
  if (bits != "bf16") json["quantization"] = {{"group_size", 64}, {"bits", std::stoi(bits)}};
  const auto config = models::parse_config(json);
  weights::RandomSource source(mx::bfloat16, bits == "bf16" ? 0 : std::stoi(bits));
  const auto shard =
      parallel::shard_of(config.sizes, {1.0}, 0, parallel::expert_split_of(1, config.divisible()));
  const parallel::Range layers{0, config.layers};
  const weights::ShardedWeights weights(source, models::shard_rules(config, source, layers), config.formats,
                                        shard, layers.begin, layers.end);
  return models::make_decoder(config, shard, weights, layers);
}

struct Times {
  std::vector<double> handed_out, step;
};

// Of each step: what the host takes to hand it out, and the time from one step's logits to the next's.
Times measure(engine::StepRunner runner, int batch) {
  std::vector<engine::SequenceStep> prompts, answers;
  for (int slot = 0; slot < batch; ++slot) {
    prompts.push_back({slot, std::vector<int>(prompt, 7), {prompt - 1}});
    answers.push_back({slot, {runner.overlaps() ? engine::likeliest_token : 7}, {0}});
  }
  Times times;
  runner.start({{}, prompts});
  if (!runner.overlaps()) runner.finish();
  double last = 0;
  for (int step = 0; step < warm_up + steps; ++step) {
    const double start = now_s();
    runner.start({{}, answers});
    const double started = now_s();
    runner.finish();
    const double done = now_s();
    if (step >= warm_up) {
      times.handed_out.push_back(started - start);
      times.step.push_back(done - last);
    }
    last = done;
  }
  return times;
}

}  // namespace

int main(int count, char** args) {
  if (count < 3 || count > 5) {
    fmt::print(stderr, "usage: bench_decode SHAPE.json 4|8|bf16 [BATCH [mlx|mlx-waits]]\n");
    return 2;
  }
  const int batch = count > 3 ? std::stoi(args[3]) : 1;
  kernels::use_large_cuda_graphs();
  const std::string by = count > 4 ? args[4] : "ours";
  if (by != "ours") kernels::use_mlx_kernels();
  if (!has_gpu()) return 2;
  mx::set_default_device(mx::Device::gpu);
  const double copy = copy_speed(), start = now_s();
  auto model = random_model(args[1], args[2]);
  const auto bytes = static_cast<double>(models::step_bytes(model));
  fmt::print(stderr, "made the weights in {:.1f} s\n", now_s() - start);
  const auto group = parallel::single_rank_group();
  const parallel::Plan alone{{{0, model.config.layers, {{}}}}};
  const Times times = measure({std::move(model),
                               {group, mx::bfloat16},
                               group,
                               alone.place(0),
                               kernels::KeyValueFormat::plain,
                               /*overlaps=*/by != "mlx-waits"},
                              batch);
  const double step = median(times.step), speed = bytes / step / 1e12;
  fmt::print("a step: {:.2f} ms, of which the host hands it out in {:.2f} ms\n", 1e3 * step,
             1e3 * median(times.handed_out));
  fmt::print("{:.1f} tok/s, weights read at {:.2f} TB/s, {:.0f} % of the copy's {:.2f} TB/s\n", batch / step,
             speed, 100 * speed / copy, copy);
}
