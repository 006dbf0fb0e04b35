// How fast each link to a peer takes data, and which one is to have the next chunk. Knows no sockets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "parallel/tcp_socket.h"

namespace tandem::parallel {

struct Pace {
  double bytes_per_s = 10e6;
  double known_s = 0;      // the time that the speed is a mean of; 0: it is a guess
  std::size_t queued = 0;  // handed to the link, not yet at the other end

  // What the speed is made from: time and bytes while the link always had something to do.
  double busy_s = 0;
  std::uint64_t busy_bytes = 0;
  bool was_busy = false;  // at some time in this message
  // The last look.
  bool busy = false;
  Deadline seen_at{};
  std::uint64_t delivered = 0;
};

// Before a message: what passed since the last one is no measure. A link of unknown speed is taken to be as
// fast as the fastest, and one that had nothing to show for its speed a little faster than before, up to
// that: so a figure that was too low does not last, and one that was right is soon found again.
void start_message(std::span<Pace> links);

// Notes that of all the bytes a link was ever handed `queued` are not yet delivered. Call it often while a
// message is under way.
void observe(Pace& pace, std::uint64_t handed, std::size_t queued, Deadline now);

// Whether link `index` should have the next chunk, of which `left` bytes are still to be handed out: where it
// is done with it no later than all links together with everything, or where it would be the first to be. So
// all end at about the same time, however unequal they are. Not where more than limits::stripe_queue of work
// waits there already.
bool takes_chunk(std::span<const Pace> links, std::size_t index, std::size_t left);

}  // namespace tandem::parallel
