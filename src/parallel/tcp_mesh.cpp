#include "parallel/tcp_mesh.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/limits.h"
#include "parallel/tcp_handshake.h"

namespace tandem::parallel {
namespace {

using std::chrono::steady_clock;

constexpr std::uint32_t frame_magic = 0x314d4454;  // "TDM1"

struct Frame {
  std::uint32_t magic = frame_magic;
  std::uint16_t kind = 0;
  std::uint16_t channel = 0;
  std::uint64_t sequence = 0;
  std::uint64_t bytes = 0;
};
static_assert(sizeof(Frame) == 24);

}  // namespace

// One transfer in progress.
class TcpMesh::Flow {
 public:
  Flow(Peer& peer, const Transfer& transfer, FrameKind kind, std::uint16_t channel)
      : peer_(&peer), transfer_(transfer) {
    const auto frame = [&](std::uint64_t sequence, std::size_t bytes) {
      return Frame{frame_magic, static_cast<std::uint16_t>(kind), channel, sequence, bytes};
    };
    if (!transfer.outgoing.empty()) own_ = frame(peer.sent_frames++, transfer.outgoing.size());
    if (!transfer.incoming.empty()) expected_ = frame(peer.received_frames++, transfer.incoming.size());
    to_send_ = transfer.outgoing.empty() ? 0 : sizeof(Frame) + transfer.outgoing.size();
    to_receive_ = transfer.incoming.empty() ? 0 : sizeof(Frame) + transfer.incoming.size();
  }

  bool sends() const { return sent_ < to_send_; }
  bool receives() const { return received_ < to_receive_; }
  int peer() const { return transfer_.peer; }
  pollfd polled() const {
    return {peer_->descriptor, static_cast<short>((sends() ? POLLOUT : 0) | (receives() ? POLLIN : 0)), 0};
  }

  // Moves what the socket takes and gives; whether anything moved.
  bool move() {
    const bool moved_out = sends() && account(send_some(), sent_);
    const bool moved_in = receives() && account(receive_some(), received_);
    return moved_out || moved_in;
  }

 private:
  // The parts of (frame, payload) from byte `done` on.
  static std::array<iovec, 2> rest(Frame& frame, const char* payload, std::size_t payload_bytes,
                                   std::size_t done) {
    const std::size_t of_frame = std::min(done, sizeof(Frame)), of_payload = done - of_frame;
    return {{{reinterpret_cast<char*>(&frame) + of_frame, sizeof(Frame) - of_frame},
             {const_cast<char*>(payload) + of_payload, payload_bytes - of_payload}}};
  }

  ssize_t send_some() {
    auto parts = rest(own_, transfer_.outgoing.data(), transfer_.outgoing.size(), sent_);
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    return ::sendmsg(peer_->descriptor, &message, MSG_NOSIGNAL);
  }

  // Never reads past this transfer: what follows belongs to a later one.
  ssize_t receive_some() {
    auto parts = rest(got_, transfer_.incoming.data(), transfer_.incoming.size(), received_);
    const bool in_frame = received_ < sizeof(Frame);
    const auto got = in_frame ? ::recv(peer_->descriptor, parts[0].iov_base, parts[0].iov_len, 0)
                              : ::recv(peer_->descriptor, parts[1].iov_base, parts[1].iov_len, 0);
    if (got == 0) throw ClusterError(fmt::format("rank {} closed the connection", transfer_.peer));
    if (in_frame && got > 0 && received_ + static_cast<std::size_t>(got) == sizeof(Frame)) check_frame();
    return got;
  }

  bool account(ssize_t bytes, std::size_t& total) {
    if (bytes > 0) {
      total += static_cast<std::size_t>(bytes);
      return true;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return false;
    throw ClusterError(
        fmt::format("the connection to rank {} broke: {}", transfer_.peer, std::strerror(errno)));
  }

  void check_frame() const {
    if (std::memcmp(&got_, &expected_, sizeof(Frame)) == 0) return;
    throw ClusterError(
        fmt::format("rank {} is out of step: it sent operation {}, number {}, of {} bytes on channel {}; "
                    "expected operation {}, number {}, of {} bytes on channel {}",
                    transfer_.peer, got_.kind, got_.sequence, got_.bytes, got_.channel, expected_.kind,
                    expected_.sequence, expected_.bytes, expected_.channel));
  }

  Peer* peer_;
  Transfer transfer_;
  Frame own_, expected_, got_;
  std::size_t to_send_ = 0, to_receive_ = 0, sent_ = 0, received_ = 0;
};

TcpMesh::TcpMesh(const TcpListener& listener, int rank, const std::vector<Endpoint>& endpoints,
                 const std::string& secret, std::chrono::milliseconds timeout)
    : rank_(rank), peers_(endpoints.size()), timeout_(timeout) {
  const Deadline deadline = steady_clock::now() + limits::connect;
  try {
    for (int peer = 0; peer < rank; ++peer) {
      peers_[peer].descriptor = connect_to_peer(endpoints[peer], rank, peer, secret, deadline);
    }
    const auto accepted = accept_peers(listener, rank, size(), secret, deadline);
    for (int peer = rank + 1; peer < size(); ++peer) peers_[peer].descriptor = accepted[peer];
  } catch (...) {
    for (const auto& peer : peers_) {
      if (peer.descriptor >= 0) ::close(peer.descriptor);
    }
    throw;
  }
}

TcpMesh::~TcpMesh() {
  for (const auto& peer : peers_) {
    if (peer.descriptor >= 0) ::close(peer.descriptor);
  }
}

void TcpMesh::exchange(FrameKind kind, std::uint16_t channel, std::span<const Transfer> transfers) {
  if (!broken_.empty()) throw ClusterError(broken_);
  std::vector<Flow> flows;
  for (const auto& transfer : transfers) flows.emplace_back(peers_[transfer.peer], transfer, kind, channel);
  const auto finished = [](const Flow& flow) { return !flow.sends() && !flow.receives(); };
  try {
    auto last_move = steady_clock::now();
    while (true) {
      bool moved = false;
      for (auto& flow : flows) moved |= flow.move();
      std::erase_if(flows, finished);
      if (flows.empty()) return;
      const auto now = steady_clock::now();
      if (moved) {
        last_move = now;
      } else if (now - last_move < limits::spin) {
        ::sched_yield();
      } else if (now - last_move > timeout_) {
        std::vector<int> stalled;
        for (const auto& flow : flows) stalled.push_back(flow.peer());
        throw ClusterError(fmt::format("rank {} has not answered for {} s", fmt::join(stalled, ", "),
                                       static_cast<double>(timeout_.count()) / 1000));
      } else {
        std::vector<pollfd> polled;
        for (const auto& flow : flows) polled.push_back(flow.polled());
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(last_move + timeout_ - now);
        ::poll(polled.data(), polled.size(), static_cast<int>(left.count()) + 1);
      }
    }
  } catch (const ClusterError& error) {
    broken_ = error.what();
    throw;
  }
}

}  // namespace tandem::parallel
