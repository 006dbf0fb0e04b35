// Latent attention in the expanded form (attention.h: HeadExpansion) on a CPU.
#pragma once

#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_task.h"

namespace tandem::kernels {

// Keys and values of a head are made from the latents that the sequences hold a block of positions at a time,
// for all rows of a call at once, and never kept: per head L (N + V) products a position, with a latent of L
// numbers, keys of N + R and values of V. `up` is packed; its weights are taken as they are, except that
// key_up is turned over anew for every call.
//
// The calling thread keeps memory for the next call: 4 H N L bytes, and per position of the sequences 4 (L +
// R) for latents laid out as keys, as much again where caches are of 8 bits, and up to 4 L for their rows.
void attend_expanded(const AttentionInputs& in, const HeadExpansion& up,
                     const std::vector<AttendedSequence>& sequences);

}  // namespace tandem::kernels
