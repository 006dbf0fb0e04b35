#include "parallel/tcp_frame.h"

#include <fmt/format.h>

namespace tandem::parallel {

Frame frame_of(const Operation& operation, std::uint64_t number, std::size_t bytes, std::uint64_t offset) {
  return {frame_magic,
          static_cast<std::uint8_t>(operation.kind),
          operation.element,
          operation.channel,
          number,
          bytes,
          offset};
}

const char* name_of(FrameKind kind) {
  switch (kind) {
    case FrameKind::all_sum:
      return "all_sum";
    case FrameKind::all_max:
      return "all_max";
    case FrameKind::all_min:
      return "all_min";
    case FrameKind::all_gather:
      return "all_gather";
    case FrameKind::sum_scatter:
      return "sum_scatter";
    case FrameKind::message:
      return "send";
    case FrameKind::split:
      return "split";
    case FrameKind::join:
      return "join";
  }
  return "an unknown operation";
}

std::string describe(const Frame& frame) {
  if (frame.magic != frame_magic) return "something that is no frame";
  return fmt::format("{} of {} bytes (type {}, group {}, number {})",
                     name_of(static_cast<FrameKind>(frame.kind)), frame.bytes, frame.element, frame.channel,
                     frame.number);
}

}  // namespace tandem::parallel
