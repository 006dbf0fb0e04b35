// The threads that share one kernel's work. Workers stay awake between the operations of one step and sleep
// once nothing came for a while.
#pragma once

#include <cstdint>
#include <functional>

namespace tandem::kernels {

// How many threads compute, the caller's own among them; 1 at the start. Not while a parallel() runs.
void set_threads(int count);
int threads();

// Calls part(0) … part(parts - 1), each once, on any thread, and returns when all have returned. The parts
// must not throw. Called while another parallel() runs, from another thread or from a part, it computes on
// the caller's thread alone.
void parallel(std::int64_t parts, const std::function<void(std::int64_t)>& part);

}  // namespace tandem::kernels
