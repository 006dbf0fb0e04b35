// Attention of single new rows, the step of many answers, on a CUDA GPU: one kernel for all sequences.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <optional>
#include <span>

#include "kernels/attention.h"

namespace tandem::kernels {

// Whether the kernel is for caches of this shape and format, and activations of this dtype, on the stream.
bool has_cuda_attention(const KeyValueShape& shape, KeyValueFormat format, mlx::core::Dtype dtype,
                        mlx::core::Stream s);

// attention() of sequences of one token each, whose rows are q, k and v from `first` on. Appends to what they
// hold in place, in the kernel itself, so that steps may follow one another without waiting. A row's numbers
// lie side by side, and rows begin at multiples of 16 bytes. None where it is not for this kernel: no CUDA
// GPU, other dtypes than half precision, caches in 8 bits, heads of an uneven grouping or of a width that 8
// does not divide, an expansion, or a sequence that is longer or stands alone.
std::optional<mlx::core::array> attention_on_cuda(const mlx::core::array& q, const mlx::core::array& k,
                                                  const mlx::core::array& v, const AttentionHeads& heads,
                                                  int first, std::span<const AttentionRows> sequences,
                                                  mlx::core::Stream s);

}  // namespace tandem::kernels
