// A part of an attention on a CPU: the queries of some tokens against blocks of keys and values.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/key_values.h"
#include "kernels/panels.h"

namespace tandem::kernels {

// What every task of a call reads, and where it writes.
struct AttentionInputs {
  const float* q;  // [T, query_heads * key_dim]
  float* y;        // [T, query_heads * value_dim]
  int query_heads;
  int key_dim, value_dim;
  float scale;
  int window;

  // As blocks of keys and values have them (key_values.h).
  int key_dims() const { return static_cast<int>(even(key_dim)); }
  int value_dims() const { return (value_dim + panel_outputs - 1) / panel_outputs * panel_outputs; }
};

// One sequence of a call: its rows are [first_row, first_row + tokens) and follow `start` positions.
struct AttendedSequence {
  std::shared_ptr<KeyValuePanels> panels;
  int start;
  int tokens;
  int first_row;
};

class AttentionTask {
 public:
  // (token, query head) pairs of a task, at most, where a token has not more alone: their scores stay in the
  // second-level cache.
  static constexpr int rows_at_once = 128;

  // Kept by a thread from task to task.
  struct State {
    std::vector<std::byte> queries;  // prepared
    std::vector<float> sums;         // [rows, value_dims]
    std::vector<Softmax> softmaxes;
  };

  // The sequence's tokens [first, end) with these query heads, which read the same keys and values.
  AttentionTask(const AttentionInputs& in, const AttendedSequence& sequence, const std::vector<int>& queries,
                int first, int end, State& state);

  // Blocks [first_block(), end_block()) are what its rows see.
  int first_block() const { return first_seen(0) / KeyValuePanels::block; }
  int end_block() const { return (seen() + KeyValuePanels::block - 1) / KeyValuePanels::block; }
  // How many of the block's positions.
  int keys_of(int index) const;
  // In ascending order of blocks.
  void add(int index, const KeyValuePanels::Block& held);
  // Once all blocks are added.
  void store() const;

 private:
  int position(int row) const { return sequence_.start + first_ + row / static_cast<int>(queries_.size()); }
  int first_seen(int row) const;
  int seen() const { return position(rows_ - 1) + 1; }
  std::size_t head_index(int row) const;
  void prepare(const float* x, int stride, int in, std::vector<std::byte>& to) const;
  void prepare_queries();
  void rescale(float* scores, int row, int index, int padded);

  const AttentionInputs& in_;
  const AttendedSequence& sequence_;
  const std::vector<int>& queries_;
  int first_, rows_;
  const PanelLoops& loops_;
  State& state_;
};

}  // namespace tandem::kernels
