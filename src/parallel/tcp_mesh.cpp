#include "parallel/tcp_mesh.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sched.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::parallel {
namespace {

using std::chrono::steady_clock;

constexpr std::uint32_t frame_magic = 0x324d4454;  // "TDM2"

// Little-endian on the wire, as every machine Tandem runs on.
struct Frame {
  std::uint32_t magic = frame_magic;
  std::uint8_t kind = 0;
  std::uint8_t element = 0;
  std::uint16_t channel = 0;
  std::uint64_t number = 0;
  std::uint64_t bytes = 0;
};
static_assert(sizeof(Frame) == 24);

const char* name_of(std::uint8_t kind) {
  switch (static_cast<FrameKind>(kind)) {
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
  }
  return "an unknown operation";
}

std::string describe(const Frame& frame) {
  if (frame.magic != frame_magic) return "something that is no frame";
  return fmt::format("{} of {} bytes (type {}, group {}, number {})", name_of(frame.kind), frame.bytes,
                     frame.element, frame.channel, frame.number);
}

}  // namespace

// One transfer in progress.
class TcpMesh::Flow {
 public:
  Flow(Peer& peer, const Transfer& transfer, const Operation& operation)
      : socket_(&peer.socket),
        peer_(transfer.peer),
        operation_(name_of(static_cast<std::uint8_t>(operation.kind))) {
    const auto frame = [&](std::uint64_t number, std::size_t bytes) {
      return Frame{frame_magic,
                   static_cast<std::uint8_t>(operation.kind),
                   operation.element,
                   operation.channel,
                   number,
                   bytes};
    };
    if (transfer.outgoing) {
      outgoing_ = *transfer.outgoing;
      own_ = frame(peer.sent_frames++, outgoing_.size());
      to_send_ = sizeof(Frame) + outgoing_.size();
    }
    if (transfer.incoming) {
      incoming_ = *transfer.incoming;
      expected_ = frame(peer.received_frames++, incoming_.size());
      to_receive_ = sizeof(Frame) + incoming_.size();
    }
  }

  bool sends() const { return sent_ < to_send_; }
  bool receives() const { return received_ < to_receive_; }
  bool finished() const { return !sends() && !receives(); }
  pollfd polled() const {
    return {socket_->descriptor(), static_cast<short>((sends() ? POLLOUT : 0) | (receives() ? POLLIN : 0)),
            0};
  }
  Deadline last_move() const { return last_move_; }

  // Moves what the socket takes and gives; whether anything moved.
  bool move(Deadline now) {
    const bool moved_out = sends() && send_some();
    const bool moved_in = receives() && receive_some();
    if (moved_out || moved_in) last_move_ = now;
    return moved_out || moved_in;
  }

  std::string stall(std::chrono::milliseconds timeout) const {
    return fmt::format("rank {} {} nothing for {} s during {}", peer_, receives() ? "sent" : "took",
                       static_cast<double>(timeout.count()) / 1000, operation_);
  }

 private:
  // Of the frame and then the payload, what follows the first `done` bytes.
  static std::array<iovec, 2> rest(Frame& frame, const char* payload, std::size_t payload_bytes,
                                   std::size_t done) {
    const std::size_t of_frame = std::min(done, sizeof(Frame)), of_payload = done - of_frame;
    const std::size_t left = std::min(payload_bytes - of_payload, limits::socket_call_bytes);
    return {{{reinterpret_cast<char*>(&frame) + of_frame, sizeof(Frame) - of_frame},
             {const_cast<char*>(payload) + of_payload, left}}};
  }

  bool send_some() {
    auto parts = rest(own_, outgoing_.data(), outgoing_.size(), sent_);
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const auto sent = ::sendmsg(socket_->descriptor(), &message, no_signal);
    return account(sent, sent_);
  }

  // Never reads past this transfer: what follows belongs to a later one.
  bool receive_some() {
    auto parts = rest(got_, incoming_.data(), incoming_.size(), received_);
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const bool in_frame = received_ < sizeof(Frame);
    const auto got = ::recvmsg(socket_->descriptor(), &message, 0);
    if (got == 0) throw_closed();
    const bool moved = account(got, received_);
    if (in_frame && received_ >= sizeof(Frame)) check_frame();
    return moved;
  }

  bool account(ssize_t bytes, std::size_t& total) const {
    if (bytes >= 0) {
      total += static_cast<std::size_t>(bytes);
      return bytes > 0;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return false;
    if (errno == EPIPE || errno == ECONNRESET) throw_closed();
    throw ClusterError(fmt::format("the connection to rank {} broke during {}: {}", peer_, operation_,
                                   std::strerror(errno)));
  }

  [[noreturn]] void throw_closed() const {
    throw ClusterError(fmt::format("rank {} closed the connection during {}", peer_, operation_));
  }

  void check_frame() const {
    if (std::memcmp(&got_, &expected_, sizeof(Frame)) == 0) return;
    throw ClusterError(fmt::format("rank {} is out of step: it sent {}, this rank expects {}", peer_,
                                   describe(got_), describe(expected_)));
  }

  const TcpSocket* socket_;
  int peer_;
  const char* operation_;
  std::span<const char> outgoing_;
  std::span<char> incoming_;
  Frame own_, expected_, got_;
  std::size_t to_send_ = 0, to_receive_ = 0, sent_ = 0, received_ = 0;
  Deadline last_move_ = steady_clock::now();
};

TcpMesh::TcpMesh(int rank, std::vector<TcpSocket> sockets, std::chrono::milliseconds timeout)
    : rank_(rank), timeout_(timeout) {
  for (auto& socket : sockets) peers_.push_back({std::move(socket)});
}

void TcpMesh::exchange(const Operation& operation, std::span<const Transfer> transfers) {
  const std::lock_guard lock(mutex_);
  check();
  const auto start = steady_clock::now();
  std::vector<Flow> flows;
  flows.reserve(transfers.size());
  for (const auto& transfer : transfers) flows.emplace_back(peers_[transfer.peer], transfer, operation);
  try {
    run(flows);
  } catch (const std::exception& error) {
    breakage_ = error.what();
    broken_ = true;
    throw;
  }
  use_.seconds += std::chrono::duration<double>(steady_clock::now() - start).count();
  for (const auto& transfer : transfers) use_.bytes += transfer.outgoing ? transfer.outgoing->size() : 0;
  ++use_.collectives;
}

void TcpMesh::set_timeout(std::chrono::milliseconds timeout) {
  const std::lock_guard lock(mutex_);
  timeout_ = timeout;
}

LinkUse TcpMesh::use() {
  const std::lock_guard lock(mutex_);
  return use_;
}

void TcpMesh::check() const {
  if (broken_) throw ClusterError(breakage_);
}

void TcpMesh::run(std::vector<Flow>& flows) const {
  auto last_move = steady_clock::now();
  while (true) {
    const auto now = steady_clock::now();
    bool moved = false;
    for (auto& flow : flows) moved |= flow.move(now);
    std::erase_if(flows, [](const Flow& flow) { return flow.finished(); });
    if (flows.empty()) return;
    if (moved) {
      last_move = now;
    } else if (now - last_move < limits::spin) {
      ::sched_yield();
    } else {
      sleep(flows, now);
    }
  }
}

// Until a socket is ready or the first flow's time is up.
void TcpMesh::sleep(const std::vector<Flow>& flows, Deadline now) const {
  std::vector<pollfd> polled;
  std::vector<std::string> stalled;
  auto first = Deadline::max();
  for (const auto& flow : flows) {
    polled.push_back(flow.polled());
    const Deadline deadline = flow.last_move() + timeout_;
    if (deadline <= now) stalled.push_back(flow.stall(timeout_));
    first = std::min(first, deadline);
  }
  if (!stalled.empty()) throw ClusterError(fmt::format("{}", fmt::join(stalled, "; ")));
  ::poll(polled.data(), polled.size(), timeout_ms(first));
}

}  // namespace tandem::parallel
