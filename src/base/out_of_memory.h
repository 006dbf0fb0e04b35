// What to say where memory for a tensor cannot be had.
#pragma once

#include <cstdint>
#include <string>

namespace tandem {

// InputError: a smaller share, or more machines, would help. `what` is the tensor.
[[noreturn]] void throw_out_of_memory(std::uint64_t bytes, const std::string& what);

}  // namespace tandem
