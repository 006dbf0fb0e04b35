#include "parallel/tcp_flow.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::parallel {
namespace {

// The links that a message of this size goes over.
std::span<Link> links_for(Peer& peer, std::size_t bytes) {
  return {peer.links.data(), bytes < limits::stripe_bytes ? 1 : peer.links.size()};
}

std::size_t chunks_of(std::size_t bytes) {
  return (bytes + limits::stripe_chunk_bytes - 1) / limits::stripe_chunk_bytes;
}

// Of the frame and then the chunk, what follows the first `done` bytes.
std::array<iovec, 2> rest(Frame& frame, std::span<const char> chunk, std::size_t done) {
  const std::size_t of_frame = std::min(done, sizeof(Frame)), of_chunk = done - of_frame;
  const std::size_t left = std::min(chunk.size() - of_chunk, limits::socket_call_bytes);
  return {{{reinterpret_cast<char*>(&frame) + of_frame, sizeof(Frame) - of_frame},
           {const_cast<char*>(chunk.data()) + of_chunk, left}}};
}

std::size_t past_frame(std::size_t bytes) { return std::max(bytes, sizeof(Frame)) - sizeof(Frame); }

msghdr message_of(std::array<iovec, 2>& parts) {
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  return message;
}

std::string at(const Link& link) { return link.address.empty() ? "" : " at " + link.address; }

}  // namespace

Flow::Flow(Peer& peer, const Transfer& transfer, const Operation& operation)
    : peer_(&peer), rank_(transfer.peer), operation_(operation) {
  if (transfer.outgoing) start_sending(transfer);
  if (transfer.incoming) start_receiving(transfer);
}

void Flow::start_sending(const Transfer& transfer) {
  outgoing_ = *transfer.outgoing;
  out_links_ = links_for(*peer_, outgoing_.size());
  out_number_ = peer_->sent_messages++;
  if (out_links_.size() > 1) {
    start_message(peer_->paces);
    open_chunk(out_links_.front(), announcement, {});
  } else {
    next_ = outgoing_.size();
    open_chunk(out_links_.front(), 0, outgoing_);
  }
}

void Flow::start_receiving(const Transfer& transfer) {
  incoming_ = *transfer.incoming;
  in_links_ = links_for(*peer_, incoming_.size());
  expected_ = frame_of(operation_, peer_->received_messages++, incoming_.size(), 0);
  awaited_chunks_ = 1;
  if (in_links_.size() > 1) {
    awaited_chunks_ += chunks_of(incoming_.size());
    arrived_.resize(awaited_chunks_);
  }
  if (all_ended()) throw_closed(in_links_.front());
  for (auto& link : in_links_) {
    if (link.received == sizeof(Frame)) check_frame(link);  // it came early
  }
}

std::size_t Flow::moved_prefix() const {
  std::size_t prefix = std::numeric_limits<std::size_t>::max();
  if (sends()) {
    prefix = next_;
    for (const auto& link : out_links_) {
      if (!link.sends() || link.outgoing.empty()) continue;
      const auto offset = static_cast<std::size_t>(link.outgoing.data() - outgoing_.data());
      prefix = std::min(prefix, offset + past_frame(link.sent));
    }
  }
  if (receives()) {
    prefix = std::min(prefix, arrived_.empty() ? past_frame(in_links_.front().received)
                                               : arrived_prefix_ * limits::stripe_chunk_bytes);
  }
  return prefix;
}

bool Flow::move(Deadline now) {
  if (out_links_.size() > 1) watch(now);
  const bool moved_out = sends() && send_some();
  const bool moved_in = receives() && receive_some();
  if (moved_out || moved_in) last_move_ = now;
  return moved_out || moved_in;
}

bool Flow::add_polled(std::vector<pollfd>& polled) const {
  bool idle = false;
  for (const auto& link : peer_->links) {
    short events = 0;
    if (link.sends()) events |= POLLOUT;
    if (awaits(link) && !link.ended) events |= POLLIN;
    if (events) polled.push_back({link.socket.descriptor(), events, 0});
    idle |= !link.sends();
  }
  return idle && next_ < outgoing_.size();
}

std::string Flow::stall(std::chrono::milliseconds timeout) const {
  const auto stuck = stuck_links();
  return fmt::format("rank {} {} nothing for {} s during {}{}{}", rank_, receives() ? "sent" : "took",
                     static_cast<double>(timeout.count()) / 1000, name_of(operation_.kind),
                     stuck.empty() ? "" : ", with data on its way at ", fmt::join(stuck, ", "));
}

// The addresses of links that died with data on them, where there are others.
std::vector<std::string> Flow::stuck_links() const {
  if (peer_->links.size() == 1) return {};
  std::vector<std::string> stuck, awaited;
  for (const auto& link : peer_->links) {
    if (awaits(link)) awaited.push_back(link.address);
    if ((awaits(link) && link.received > 0) || link.sends() || link.socket.queued_bytes() > 0)
      stuck.push_back(link.address);
  }
  // Where some links have brought a later message, what is missing of this one is on the others.
  return stuck.empty() && awaited.size() < in_links_.size() ? awaited : stuck;
}

bool Flow::send_some() {
  bool moved = false;
  for (std::size_t i = 0; i < out_links_.size(); ++i) {
    if (out_links_[i].sends() || hand_out(i)) moved |= write(out_links_[i]);
  }
  return moved;
}

void Flow::watch(Deadline now) {
  for (std::size_t i = 0; i < out_links_.size(); ++i) {
    const Link& link = out_links_[i];
    observe(peer_->paces[i], link.handed, link.to_send - link.sent + link.socket.queued_bytes(), now);
  }
}

// Gives the next chunk to this link, where it should have it.
bool Flow::hand_out(std::size_t link) {
  const std::size_t left = outgoing_.size() - next_;
  if (left == 0 || !takes_chunk(peer_->paces, link, left)) return false;
  const auto chunk = outgoing_.subspan(next_, std::min(left, limits::stripe_chunk_bytes));
  open_chunk(out_links_[link], next_, chunk);
  peer_->paces[link].queued += chunk.size();
  next_ += chunk.size();
  return true;
}

void Flow::open_chunk(Link& link, std::uint64_t offset, std::span<const char> chunk) {
  link.own = frame_of(operation_, out_number_, outgoing_.size(), offset);
  link.outgoing = chunk;
  link.sent = 0;
  link.to_send = sizeof(Frame) + chunk.size();
  link.handed += link.to_send;
  ++open_chunks_;
}

bool Flow::write(Link& link) {
  auto parts = rest(link.own, link.outgoing, link.sent);
  const auto message = message_of(parts);
  const bool moved = account(link, ::sendmsg(link.socket.descriptor(), &message, no_signal), link.sent);
  if (!link.sends()) --open_chunks_;
  return moved;
}

bool Flow::receive_some() {
  bool moved = false;
  for (auto& link : in_links_) {
    if (awaits(link) && !link.ended) moved |= read(link);
  }
  return moved;
}

// Never reads past the chunk: what follows may belong to a later message.
bool Flow::read(Link& link) {
  const bool in_frame = link.received < sizeof(Frame);
  // Where a chunk goes is known before its frame where it is the only one.
  const auto chunk = in_frame && !arrived_.empty() ? std::span<char>() : chunk_of(link);
  auto parts = rest(link.got, chunk, link.received);
  auto message = message_of(parts);
  const auto got = ::recvmsg(link.socket.descriptor(), &message, 0);
  if (got == 0) {
    note_end(link);
    return false;
  }
  const bool moved = account(link, got, link.received);
  if (in_frame && link.received >= sizeof(Frame)) {
    check_frame(link);
  } else if (!in_frame && link.received == sizeof(Frame) + chunk.size()) {
    close_chunk(link);
  }
  return moved;
}

// Where the link's next chunk is of a later message: its sender is done with this one, the rest of which
// comes over other links.
bool Flow::is_early(const Link& link) const {
  const bool may_be = !arrived_.empty() && (&link != in_links_.data() || arrived_.back());
  return may_be && link.received == sizeof(Frame) && link.got.magic == frame_magic &&
         link.got.number > expected_.number;
}

// Whether some of the message may still come over the link.
bool Flow::awaits(const Link& link) const {
  return receives() && &link < in_links_.data() + in_links_.size() && !is_early(link);
}

// Of a link whose frame is there, and checked; or for the only chunk.
std::span<char> Flow::chunk_of(const Link& link) const {
  if (arrived_.empty()) return incoming_;
  if (link.got.offset == announcement) return {};
  return incoming_.subspan(link.got.offset,
                           std::min(incoming_.size() - link.got.offset, limits::stripe_chunk_bytes));
}

// Of a frame that has just come in.
void Flow::check_frame(Link& link) {
  if (is_early(link)) return;
  const bool in_step = std::memcmp(&link.got, &expected_, offsetof(Frame, offset)) == 0;
  if (!in_step) {
    throw ClusterError(fmt::format("rank {} is out of step: it sent {}, this rank expects {}", rank_,
                                   describe(link.got), describe(expected_)));
  }
  const std::uint64_t offset = link.got.offset, chunk = offset / limits::stripe_chunk_bytes;
  const bool in_place =
      arrived_.empty() ? offset == 0
      : offset == announcement
          ? &link == in_links_.data() && !arrived_.back()
          : offset < incoming_.size() && offset % limits::stripe_chunk_bytes == 0 && !arrived_[chunk];
  if (!in_place) {
    throw ClusterError(fmt::format("rank {} is out of step: it sent byte {} of {}{}, which has no place",
                                   rank_, offset, describe(link.got), at(link)));
  }
  if (link.received == sizeof(Frame) + chunk_of(link).size()) close_chunk(link);
}

void Flow::close_chunk(Link& link) {
  link.received = 0;
  --awaited_chunks_;
  if (arrived_.empty()) return;
  const bool announces = link.got.offset == announcement;
  arrived_[announces ? arrived_.size() - 1 : link.got.offset / limits::stripe_chunk_bytes] = true;
  while (arrived_prefix_ + 1 < arrived_.size() && arrived_[arrived_prefix_]) ++arrived_prefix_;
}

// A peer that is done may close its links one after the other, while the last bytes are on some of them.
void Flow::note_end(Link& link) {
  link.ended = true;
  if (link.received > 0 || all_ended()) throw_closed(link);
}

bool Flow::all_ended() const {
  return std::all_of(in_links_.begin(), in_links_.end(), [](const Link& link) { return link.ended; });
}

bool Flow::account(const Link& link, ssize_t bytes, std::size_t& total) const {
  if (bytes >= 0) {
    total += static_cast<std::size_t>(bytes);
    return bytes > 0;
  }
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return false;
  if (errno == EPIPE || errno == ECONNRESET) throw_closed(link);
  throw ClusterError(fmt::format("the connection to rank {}{} broke during {}: {}", rank_, at(link),
                                 name_of(operation_.kind), std::strerror(errno)));
}

void Flow::throw_closed(const Link& link) const {
  throw ClusterError(
      fmt::format("rank {} closed the connection{} during {}", rank_, at(link), name_of(operation_.kind)));
}

}  // namespace tandem::parallel
