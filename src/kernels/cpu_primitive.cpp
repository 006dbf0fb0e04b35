#include "kernels/cpu_primitive.h"

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <string_view>
#include <utility>

#include "base/limits.h"
#include "base/out_of_memory.h"
#include "kernels/matrix.h"
#include "kernels/threads.h"

namespace tandem::kernels {

namespace mx = mlx::core;

namespace {

// Whether x is, or will be when it is computed, row-major. A sum over ranks is told by its name: MLX's
// library keeps its type to itself.
bool is_row_major(const mx::array& x) {
  if (x.status() == mx::array::Status::available) return x.flags().row_contiguous;
  return x.has_primitive() && (dynamic_cast<const CpuPrimitive*>(&x.primitive()) != nullptr ||
                               std::string_view(x.primitive().name()).ends_with("AllReduce"));
}

// Of a stream, what is on its way to be computed.
struct Ahead {
  std::atomic<int> operations{0};
  std::atomic<std::int64_t> bytes{0};  // of their results
};

Ahead& ahead_of(mx::Stream s) {
  static std::array<Ahead, 16> all;
  return all[static_cast<std::size_t>(s.index) % all.size()];
}

// An operation's place among them, until it is computed or its task is dropped, as MLX does after an error.
class Place {
 public:
  Place(Ahead& ahead, std::int64_t bytes) : ahead_(ahead), bytes_(bytes) {
    ahead_.bytes += bytes_;
    ++ahead_.operations;
  }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  ~Place() { leave(); }

  void leave() {
    if (left_) return;
    left_ = true;
    ahead_.bytes -= bytes_;
    --ahead_.operations;
    ahead_.operations.notify_all();
  }

 private:
  Ahead& ahead_;
  std::int64_t bytes_;
  bool left_ = false;
};

// MLX gives results memory when their operations are handed to the stream, up to a hundred operations before
// they are computed: in training, two layers' arrays at once. So the caller waits here while two operations
// are under way and large. Not beside a GPU, whose work may not have been handed over that they wait for.
void wait_for_room(const Ahead& ahead, std::int64_t bytes) {
  if (!on_cpu()) return;
  for (int count = ahead.operations;
       count >= limits::operations_ahead && ahead.bytes + bytes > limits::bytes_ahead;
       count = ahead.operations)
    ahead.operations.wait(count);
}

}  // namespace

void allocate(std::vector<mx::array>& arrays) {
  for (auto& array : arrays) {
    auto buffer = mx::allocator::malloc(array.nbytes());
    if (array.nbytes() > 0 && !buffer.buffer().ptr())
      throw_out_of_memory(array.nbytes(), array.has_primitive() ? array.primitive().name() : "a result");
    array.set_data(std::move(buffer));
  }
}

void parallel_rows(std::int64_t rows, std::int64_t size, const std::function<void(std::int64_t)>& row) {
  constexpr std::int64_t elements_of_a_part = 16 << 10;
  const std::int64_t at_once =
      std::max<std::int64_t>(1, elements_of_a_part / std::max<std::int64_t>(1, size));
  parallel((rows + at_once - 1) / at_once, [&](std::int64_t part) {
    for (std::int64_t r = part * at_once; r < std::min(rows, (part + 1) * at_once); ++r) row(r);
  });
}

void CpuPrimitive::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  std::int64_t bytes = 0;
  for (const auto& output : outputs) bytes += static_cast<std::int64_t>(output.nbytes());
  Ahead& ahead = ahead_of(stream());
  wait_for_room(ahead, bytes);
  allocate(outputs);
  auto& encoder = mx::cpu::get_command_encoder(stream());
  for (const auto& input : inputs) encoder.set_input_array(input);
  for (auto& output : outputs) encoder.set_output_array(output);
  encoder.dispatch([run = work(inputs, outputs), place = std::make_shared<Place>(ahead, bytes)] {
    run();
    place->leave();
  });
}

mx::array row_major(const mx::array& x, mx::Stream s) {
  return is_row_major(x) ? x : mx::contiguous(x, false, s);
}

mx::array as_float_rows(const mx::array& x, mx::Stream s) {
  return row_major(mx::astype(x, mx::float32, s), s);
}

}  // namespace tandem::kernels
