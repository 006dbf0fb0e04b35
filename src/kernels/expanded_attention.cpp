#include "kernels/expanded_attention.h"

#include <algorithm>

#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

constexpr int block = KeyValuePanels::block;

constexpr int whole_panels(int count) { return (count + panel_outputs - 1) / panel_outputs * panel_outputs; }

// The latents of a block of positions, as both products with them read it.
struct LatentBlock {
  int positions = 0;
  KeyValuePanels::Scratch scratch;
  KeyValuePanels::Block held{};  // as keys and as values
  std::vector<std::byte> rows;   // prepared for the products with value_up
};

// What the tasks of a call share.
struct Shared {
  std::vector<float> key_weights;   // [H], of each [nope, latent] in tiles of rows (panels.h)
  std::vector<LatentBlock> blocks;  // of the sequences, one after the other
};

// Some tokens of one sequence with one head.
struct Task {
  const AttendedSequence* sequence;
  const LatentBlock* blocks;
  int head, first, end;
};

class Call {
 public:
  Call(const AttentionInputs& in, const HeadExpansion& up, Shared& shared)
      : in_(in),
        up_(up),
        shared_(shared),
        loops_(current_loops()),
        latent_(up.key_up.out()),
        nope_(up.key_up.in()) {
    for (const auto& matrix : up.value_up.packed) values_.push_back(packed_operand(*matrix));
  }

  // A tile of W_uk's rows is some columns of what the absorbed form multiplies with.
  void prepare_key_weights() {
    const std::int64_t row = even(latent_);
    shared_.key_weights.resize(static_cast<std::size_t>(in_.query_heads * nope_ * row));
    parallel(in_.query_heads, [&](std::int64_t head) {
      for (int first = 0; first < nope_; first += loops_.dense_rows) {
        const int count = std::min(loops_.dense_rows, nope_ - first);
        float* tile = shared_.key_weights.data() + (head * nope_ + first) * row;
        unpack_columns(*up_.key_up.packed[head], first, count, tile);
        std::fill_n(tile + latent_ * count, (row - latent_) * count, 0.0F);
      }
    });
  }

  void prepare_block(const AttendedSequence& sequence, int index, LatentBlock& to) const {
    to.positions = std::min(block, sequence.start + sequence.tokens - index * block);
    to.held = sequence.panels->read(index, 0, to.positions, to.scratch);
    const int rows = whole_panels(to.positions);
    thread_local std::vector<float> plain;
    plain.resize(static_cast<std::size_t>(rows) * latent_);
    for (int first = 0; first < latent_; first += panel_outputs) {
      const float* from = to.held.values + static_cast<std::ptrdiff_t>(first) * block;
      for (int row = 0; row < rows; ++row)
        std::copy_n(from + row * panel_outputs, std::min(panel_outputs, latent_ - first),
                    plain.data() + static_cast<std::ptrdiff_t>(row) * latent_ + first);
    }
    const PanelShape& shape = values_.front().shape;
    const Activation activation = activation_of(shape.format, loops_);
    to.rows.resize(rows * prepared_bytes(activation, latent_, shape.group));
    const int height = tile_rows(activation, loops_);
    loops_.prepare({plain.data(), latent_, rows, latent_, activation, shape.group, to.rows.data()}, 0,
                   (rows + height - 1) / height);
  }

  void run(const Task& task) const {
    thread_local std::vector<AttentionTask::State> states;
    thread_local KeyValuePanels::Scratch scratch;
    constexpr int at_once = AttentionTask::rows_at_once;
    const std::vector<int> head{task.head};
    const auto count = static_cast<std::size_t>((task.end - task.first + at_once - 1) / at_once);
    if (states.size() < count) states.resize(count);
    std::vector<AttentionTask> parts;
    for (std::size_t i = 0; i < count; ++i) {
      const int first = task.first + static_cast<int>(i) * at_once;
      parts.emplace_back(in_, *task.sequence, head, first, std::min(task.end, first + at_once), states[i]);
    }
    for (int index = 0; index < parts.back().end_block(); ++index) {
      const auto held = expand(task.head, task.blocks[index], scratch);
      for (auto& part : parts) {
        if (index < part.end_block()) part.add(index, held);
      }
    }
    for (const auto& part : parts) part.store();
  }

 private:
  // A block for one head. The rest of the last panel of positions, which nothing sees, is made of what the
  // cache has there: zeros.
  KeyValuePanels::Block expand(int head, const LatentBlock& latents, KeyValuePanels::Scratch& to) const {
    const int rope = in_.key_dim - nope_, key_dims = in_.key_dims();
    const auto latent_dims = static_cast<std::ptrdiff_t>(even(latent_ + rope));
    to.keys.resize(static_cast<std::size_t>(block) * key_dims);
    to.values.resize(static_cast<std::size_t>(block) * in_.value_dims());
    const float* weights =
        shared_.key_weights.data() + static_cast<std::ptrdiff_t>(head) * nope_ * even(latent_);
    const PanelShape one{panel_outputs, latent_, Format::f32, ScaleType::f32, 0};
    for (int first = 0; first < latents.positions; first += panel_outputs) {
      const float* panel = latents.held.keys + first * latent_dims;  // [latent + rope][32 positions]
      float* keys = to.keys.data() + static_cast<std::ptrdiff_t>(first) * key_dims;
      loops_.multiply({one, reinterpret_cast<const std::byte*>(panel), panel_bytes(one),
                       reinterpret_cast<const std::byte*>(weights), keys, panel_outputs, nope_},
                      0, 1);
      float* turned = std::copy_n(panel + static_cast<std::ptrdiff_t>(latent_) * panel_outputs,
                                  rope * panel_outputs, keys + nope_ * panel_outputs);
      std::fill(turned, keys + key_dims * panel_outputs, 0.0F);
    }
    for (int first = 0; first < in_.value_dim; first += panel_outputs) {
      multiply_panel(values_[head], latents.rows.data(), whole_panels(latents.positions),
                     to.values.data() + static_cast<std::ptrdiff_t>(first) * block, panel_outputs,
                     first / panel_outputs);
    }
    return {to.keys.data(), to.values.data()};
  }

  const AttentionInputs& in_;
  const HeadExpansion& up_;
  Shared& shared_;
  const PanelLoops& loops_;
  int latent_, nope_;
  std::vector<Operand> values_;  // by head
};

}  // namespace

void attend_expanded(const AttentionInputs& in, const HeadExpansion& up,
                     const std::vector<AttendedSequence>& sequences) {
  thread_local Shared kept;  // fresh memory would be paged in anew for every call
  Shared& shared = kept;
  Call call(in, up, shared);
  call.prepare_key_weights();
  struct Place {
    const AttendedSequence* sequence;
    int index;
  };
  std::vector<Place> places;
  for (const auto& sequence : sequences) {
    for (int index = 0; index * block < sequence.start + sequence.tokens; ++index)
      places.push_back({&sequence, index});
  }
  if (shared.blocks.size() < places.size()) shared.blocks.resize(places.size());
  parallel(static_cast<std::int64_t>(places.size()), [&](std::int64_t i) {
    call.prepare_block(*places[i].sequence, places[i].index, shared.blocks[i]);
  });
  // Each cut of a sequence's rows makes its keys and values anew, so only threads that had nothing to do are
  // worth one.
  const int cuts = std::max(1, threads() / in.query_heads);
  std::vector<Task> tasks;
  const LatentBlock* blocks = shared.blocks.data();
  for (const auto& sequence : sequences) {
    const int parts = std::min(cuts, sequence.tokens);
    for (int head = 0; head < in.query_heads; ++head) {
      for (int part = 0; part < parts; ++part)
        tasks.push_back(
            {&sequence, blocks, head, sequence.tokens * part / parts, sequence.tokens * (part + 1) / parts});
    }
    blocks += (sequence.start + sequence.tokens + block - 1) / block;
  }
  parallel(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t i) { call.run(tasks[i]); });
}

}  // namespace tandem::kernels
