#include "parallel/tcp_pace.h"

#include <algorithm>
#include <chrono>

#include "base/limits.h"

namespace tandem::parallel {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr double slowest_bytes_per_s = 1e4;  // for a link that stands still, too, there is a figure
constexpr double regain = 1.01;
constexpr double hearsay_s = 1e-4;
// Less may be a tail whose acknowledgement the other end puts off: two packets, of 9000 bytes at most.
constexpr std::size_t busy_bytes = limits::stripe_chunk_bytes / 2;

}  // namespace

void start_message(std::span<Pace> links) {
  double fastest = 0;
  for (const auto& link : links) fastest = std::max(fastest, link.known_s > 0 ? link.bytes_per_s : 0);
  for (auto& link : links) {
    if (link.known_s == 0 && fastest > 0) link.bytes_per_s = fastest;
    if (link.known_s > 0 && !link.was_busy) {
      link.bytes_per_s = std::min(fastest, link.bytes_per_s * regain);
      link.known_s = std::min(link.known_s, hearsay_s);  // the next sample decides
    }
    link.was_busy = link.busy = false;
  }
}

void observe(Pace& pace, std::uint64_t handed, std::size_t queued, Deadline now) {
  const std::uint64_t delivered = handed - queued;
  if (pace.busy) {
    pace.busy_s += Seconds(now - pace.seen_at).count();
    pace.busy_bytes += delivered - pace.delivered;
  }
  pace.busy = queued >= busy_bytes;
  pace.was_busy |= pace.busy;
  pace.queued = queued;
  pace.seen_at = now;
  pace.delivered = delivered;
  // Fewer bytes than a chunk may be what a link takes in at once before its speed shows.
  const bool enough =
      pace.busy_bytes >= limits::stripe_chunk_bytes || pace.busy_s >= Seconds(limits::stripe_memory).count();
  if (!enough || pace.busy_s < Seconds(limits::stripe_sample).count()) return;
  const double measured = static_cast<double>(pace.busy_bytes) / pace.busy_s;
  pace.known_s = std::min(pace.known_s + pace.busy_s, Seconds(limits::stripe_memory).count());
  pace.bytes_per_s += (measured - pace.bytes_per_s) * std::min(1.0, pace.busy_s / pace.known_s);
  pace.bytes_per_s = std::max(pace.bytes_per_s, slowest_bytes_per_s);
  pace.busy_s = 0;
  pace.busy_bytes = 0;
}

bool takes_chunk(std::span<const Pace> links, std::size_t index, std::size_t left) {
  const double chunk = static_cast<double>(std::min(left, limits::stripe_chunk_bytes));
  const auto done_after = [&](const Pace& link) {
    return (static_cast<double>(link.queued) + chunk) / link.bytes_per_s;
  };
  const Pace& own = links[index];
  const double queue_bytes =
      std::max(static_cast<double>(limits::stripe_queue_bytes),
               own.known_s > 0 ? own.bytes_per_s * Seconds(limits::stripe_queue).count() : 0);
  if (static_cast<double>(own.queued) + chunk > queue_bytes) return false;
  double work = static_cast<double>(left), speed = 0;
  for (const auto& link : links) {
    work += static_cast<double>(link.queued);
    speed += link.bytes_per_s;
  }
  const double own_time = done_after(own);
  return own_time <= work / speed || std::none_of(links.begin(), links.end(), [&](const Pace& link) {
           return done_after(link) < own_time;
         });
}

}  // namespace tandem::parallel
