// What stands before every chunk that crosses a link.
//
// A message to a peer is one chunk on the first link. Where the peer has several links, a message of
// limits::stripe_bytes or more is cut every limits::stripe_chunk_bytes, and each chunk goes over any of them;
// it is announced on the first by a frame without a chunk, so that ranks out of step notice there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

namespace tandem::parallel {

enum class FrameKind : std::uint8_t {
  all_sum = 1,
  all_max,
  all_min,
  all_gather,
  sum_scatter,
  message,
  split,
  join
};

// What a frame belongs to. Both ends must agree on all of it, the message's number and its bytes, so that
// ranks that have lost step say so instead of mixing up data.
struct Operation {
  FrameKind kind;
  std::uint8_t element = 0;   // the element type, as its user numbers them
  std::uint16_t channel = 0;  // keeps the groups that share a mesh apart
};

inline constexpr std::uint32_t frame_magic = 0x334d4454;  // "TDM3"
inline constexpr std::uint64_t announcement = std::numeric_limits<std::uint64_t>::max();

// Little-endian on the wire, as every machine Tandem runs on.
struct Frame {
  std::uint32_t magic = frame_magic;
  std::uint8_t kind = 0;
  std::uint8_t element = 0;
  std::uint16_t channel = 0;
  std::uint64_t number = 0;  // counts the messages of a direction, over all links
  std::uint64_t bytes = 0;   // of the message
  std::uint64_t offset = 0;  // of the chunk in it
};
static_assert(sizeof(Frame) == 32);

Frame frame_of(const Operation& operation, std::uint64_t number, std::size_t bytes, std::uint64_t offset);
const char* name_of(FrameKind kind);
// For messages; the offset is left out.
std::string describe(const Frame& frame);

}  // namespace tandem::parallel
