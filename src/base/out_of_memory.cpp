#include "base/out_of_memory.h"

#include <fmt/format.h>

#include "base/error.h"

namespace tandem {

void throw_out_of_memory(std::uint64_t bytes, const std::string& what) {
  throw InputError(
      fmt::format("out of memory: {} bytes for {}; end other programs, give this machine a smaller share, or "
                  "take more machines",
                  bytes, what));
}

}  // namespace tandem
