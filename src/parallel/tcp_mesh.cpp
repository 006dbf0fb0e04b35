#include "parallel/tcp_mesh.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::parallel {
namespace {

using std::chrono::steady_clock;

// What all flows have moved; those that have finished, all.
std::size_t moved_prefix(const std::vector<Flow>& flows) {
  std::size_t prefix = std::numeric_limits<std::size_t>::max();
  for (const auto& flow : flows) prefix = std::min(prefix, flow.moved_prefix());
  return prefix;
}

}  // namespace

TcpMesh::TcpMesh(int rank, std::vector<std::vector<TcpSocket>> links, std::chrono::milliseconds timeout)
    : rank_(rank), timeout_(timeout) {
  for (auto& sockets : links) {
    Peer peer;
    peer.paces.resize(sockets.size());
    for (auto& socket : sockets) {
      Link link;
      if (sockets.size() > 1) link.address = socket.peer_address();
      link.socket = std::move(socket);
      peer.links.push_back(std::move(link));
    }
    peers_.push_back(std::move(peer));
  }
}

std::size_t TcpMesh::most_links() const {
  std::size_t most = 0;
  for (const auto& peer : peers_) most = std::max(most, peer.links.size());
  return most;
}

void TcpMesh::exchange(const Operation& operation, std::span<const Transfer> transfers,
                       const Progress& progress) {
  const std::lock_guard lock(mutex_);
  check();
  const auto start = steady_clock::now();
  try {
    std::vector<Flow> flows;
    flows.reserve(transfers.size());
    for (const auto& transfer : transfers) flows.emplace_back(peers_[transfer.peer], transfer, operation);
    std::size_t bytes = 0;
    for (const auto& transfer : transfers) bytes = std::max(bytes, transfer.size());
    run(flows, bytes < limits::bulk_bytes ? limits::spin : limits::bulk_spin, progress);
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

void TcpMesh::run(std::vector<Flow>& flows, std::chrono::microseconds spin, const Progress& progress) const {
  auto last_move = steady_clock::now();
  std::size_t told = 0;
  while (true) {
    const auto now = steady_clock::now();
    bool moved = false;
    for (auto& flow : flows) moved |= flow.move(now);
    std::erase_if(flows, [](const Flow& flow) { return flow.finished(); });
    if (flows.empty()) return;
    if (moved) {
      last_move = now;
      if (const auto prefix = progress ? moved_prefix(flows) : 0; prefix >= told + limits::reduce_slice_bytes)
        progress(told = prefix);
    } else if (now - last_move < spin) {
      ::sched_yield();
    } else {
      sleep(flows, now);
    }
  }
}

// Until a socket is ready or the first flow's time is up.
void TcpMesh::sleep(const std::vector<Flow>& flows, Deadline now) const {
  check_patience(flows, now);
  std::vector<pollfd> polled;
  auto first = Deadline::max();
  for (const auto& flow : flows) {
    const bool time_helps = flow.add_polled(polled);
    const Deadline deadline = flow.last_move() + timeout_;
    first = std::min({first, deadline, time_helps ? now + limits::stripe_poll : deadline});
  }
  // Before another try: a socket that is not ready may yet take some bytes, which is no sign of the peer.
  if (::poll(polled.data(), polled.size(), timeout_ms(first)) == 0)
    check_patience(flows, steady_clock::now());
}

// ClusterError that tells of the flows whose time is up.
void TcpMesh::check_patience(const std::vector<Flow>& flows, Deadline now) const {
  std::vector<std::string> stalled;
  for (const auto& flow : flows) {
    if (flow.last_move() + timeout_ <= now) stalled.push_back(flow.stall(timeout_));
  }
  if (!stalled.empty()) throw ClusterError(fmt::format("{}", fmt::join(stalled, "; ")));
}

}  // namespace tandem::parallel
