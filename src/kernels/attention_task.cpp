#include "kernels/attention_task.h"

#include <algorithm>
#include <limits>

#include "kernels/products.h"

namespace tandem::kernels {
namespace {

constexpr int block = KeyValuePanels::block;

// Scratch of one thread, kept between calls.
struct Scratch {
  std::vector<float> rows, scores;
  std::vector<std::byte> weights;  // scores after the softmax, prepared
};

Scratch& scratch() {
  thread_local Scratch scratch;
  return scratch;
}

template <class Element>
Element* fit(std::vector<Element>& buffer, std::size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

}  // namespace

AttentionTask::AttentionTask(const AttentionInputs& in, const AttendedSequence& sequence,
                             const std::vector<int>& queries, int first, int end, State& state)
    : in_(in),
      sequence_(sequence),
      queries_(queries),
      first_(first),
      rows_(static_cast<int>(queries.size()) * (end - first)),
      loops_(current_loops()),
      state_(state) {
  state_.sums.assign(static_cast<std::size_t>(rows_) * in_.value_dims(), 0);
  state_.softmaxes.assign(rows_, {-std::numeric_limits<float>::infinity(), 0});
  prepare_queries();
}

int AttentionTask::keys_of(int index) const { return std::min(block, seen() - index * block); }

int AttentionTask::first_seen(int row) const {
  return in_.window > 0 ? std::max(0, position(row) + 1 - in_.window) : 0;
}

// Of row `row`, where in q and y its head starts, in heads.
std::size_t AttentionTask::head_index(int row) const {
  const int group = static_cast<int>(queries_.size());
  const std::size_t token = sequence_.first_row + first_ + row / group;
  return token * in_.query_heads + queries_[row % group];
}

void AttentionTask::prepare_queries() {
  const int dims = in_.key_dims();
  float* rows = fit(scratch().rows, static_cast<std::size_t>(rows_) * dims);
  for (int row = 0; row < rows_; ++row) {
    float* to = rows + static_cast<std::size_t>(row) * dims;
    std::copy_n(in_.q + head_index(row) * in_.key_dim, in_.key_dim, to);
    std::fill(to + in_.key_dim, to + dims, 0.0F);
  }
  prepare(rows, dims, dims, state_.queries);
}

void AttentionTask::prepare(const float* x, int stride, int in, std::vector<std::byte>& to) const {
  std::byte* prepared = fit(to, static_cast<std::size_t>(rows_ * prepared_bytes(Activation::f32, in, 0)));
  const int tiles = (rows_ + loops_.dense_rows - 1) / loops_.dense_rows;
  loops_.prepare({x, stride, rows_, in, Activation::f32, 0, prepared}, 0, tiles);
}

void AttentionTask::add(int index, const KeyValuePanels::Block& held) {
  const int padded = (keys_of(index) + panel_outputs - 1) / panel_outputs * panel_outputs;
  const PanelShape by_keys{padded, in_.key_dims(), Format::f32, ScaleType::f32, 0};
  float* scores = fit(scratch().scores, static_cast<std::size_t>(rows_) * block);
  loops_.multiply({by_keys, reinterpret_cast<const std::byte*>(held.keys), panel_bytes(by_keys),
                   state_.queries.data(), scores, block, rows_},
                  0, panels_of(by_keys));
  for (int row = 0; row < rows_; ++row)
    rescale(scores + static_cast<std::size_t>(row) * block, row, index, padded);
  prepare(scores, block, padded, scratch().weights);
  const int value_dims = in_.value_dims();
  const PanelShape by_dims{value_dims, padded, Format::f32, ScaleType::f32, 0};
  loops_.multiply(
      {by_dims, reinterpret_cast<const std::byte*>(held.values), std::int64_t{block} * panel_outputs * 4,
       scratch().weights.data(), state_.sums.data(), value_dims, rows_, /*adds=*/true},
      0, panels_of(by_dims));
}

// The row's scores of a block become weights; its sums so far are measured by the new largest score.
void AttentionTask::rescale(float* scores, int row, int index, int padded) {
  const int first = std::clamp(first_seen(row) - index * block, 0, padded);
  const int end = std::clamp(position(row) + 1 - index * block, 0, padded);
  if (first >= end) {  // it sees nothing here
    std::fill_n(scores, padded, 0.0F);
    return;
  }
  const float factor = loops_.vectors.softmax(scores, first, end, padded, in_.scale, state_.softmaxes[row]);
  if (factor == 1) return;
  float* sums = state_.sums.data() + static_cast<std::size_t>(row) * in_.value_dims();
  for (int d = 0; d < in_.value_dim; ++d) sums[d] *= factor;
}

void AttentionTask::store() const {
  for (int row = 0; row < rows_; ++row) {
    const float* sums = state_.sums.data() + static_cast<std::size_t>(row) * in_.value_dims();
    float* y = in_.y + head_index(row) * in_.value_dim;
    for (int d = 0; d < in_.value_dim; ++d) y[d] = sums[d] / state_.softmaxes[row].sum;
  }
}

}  // namespace tandem::kernels
