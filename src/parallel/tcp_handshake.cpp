#include "parallel/tcp_handshake.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <list>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/limits.h"
#include "base/log.h"
#include "parallel/tcp_links.h"
#include "parallel/tcp_meeting.h"

namespace tandem::parallel {
namespace {

using std::chrono::steady_clock;

using LinkMask = std::uint8_t;
static_assert(limits::links <= 8 * sizeof(LinkMask));

// What this rank has of another.
struct Acquaintance {
  std::array<TcpSocket, limits::links> links;
  bool settled = false;  // both know which links count

  LinkMask mask() const {
    LinkMask mask = 0;
    for (std::size_t i = 0; i < links.size(); ++i) mask |= static_cast<LinkMask>(links[i] ? 1 << i : 0);
    return mask;
  }
};

// Until proved or failed.
Progress carry_out(Approach& approach) {
  while (true) {
    const Progress progress = approach.advance();
    if (progress != Progress::waits) return progress;
    pollfd polled = approach.polled();
    ::poll(&polled, 1, static_cast<int>(limits::connect_retry.count()));
  }
}

// Link 0.
TcpSocket connect_to_peer(const Endpoint& endpoint, int rank, int peer, const std::string& secret,
                          Deadline deadline) {
  const Introduction who{static_cast<std::uint32_t>(rank), static_cast<std::uint32_t>(peer), 0};
  std::vector<std::string> told;
  while (true) {
    std::vector<std::string> failures;
    for (const auto& address : endpoint.addresses) {
      const Deadline turn = std::min(deadline, steady_clock::now() + limits::handshake);
      Approach approach(address, endpoint.port, who, secret, turn);
      if (carry_out(approach) == Progress::proved) return approach.take();
      failures.push_back(fmt::format("{} ({})", address, approach.failure()));
    }
    const bool over = steady_clock::now() >= deadline;
    if (!over || told.empty()) told = failures;  // not those of a round that was cut short
    if (over) {
      throw ClusterError(fmt::format("cannot reach rank {} on port {} at {}: is a firewall in the way?", peer,
                                     endpoint.port, fmt::join(told, ", ")));
    }
    std::this_thread::sleep_for(limits::connect_retry);
  }
}

// Once link 0 to every rank below stands: accepts the ranks above, and tries further links to those below.
class Gathering {
 public:
  Gathering(const TcpListener& listener, int rank, std::vector<Acquaintance> peers, const std::string& secret,
            Deadline deadline)
      : listener_(listener), rank_(rank), peers_(std::move(peers)), secret_(secret), deadline_(deadline) {}

  void try_further_links(const std::vector<Endpoint>& endpoints);
  std::vector<Acquaintance> finish();

 private:
  std::vector<int> absent() const;
  void advance_approaches();
  void settle_below();
  void settle_above();
  void advance_strangers();
  void admit();
  void wait_for_any() const;

  const TcpListener& listener_;
  int rank_;
  std::vector<Acquaintance> peers_;
  const std::string& secret_;
  Deadline deadline_;
  std::list<Stranger> strangers_;
  std::list<Approach> approaches_;
};

void Gathering::try_further_links(const std::vector<Endpoint>& endpoints) {
  const Deadline turn = std::min(deadline_, steady_clock::now() + limits::further_links);
  for (int peer = 0; peer < rank_; ++peer) {
    const auto& first = peers_[peer].links.front();
    Introduction who{static_cast<std::uint32_t>(rank_), static_cast<std::uint32_t>(peer), 0};
    for (const auto& address : further_links(listener_.networks(), endpoints[peer].addresses,
                                             {first.own_address(), first.peer_address()})) {
      ++who.link;
      approaches_.emplace_back(address, endpoints[peer].port, who, secret_, turn);
    }
  }
}

std::vector<Acquaintance> Gathering::finish() {
  while (true) {
    advance_approaches();
    settle_below();
    if (absent().empty() && approaches_.empty()) return std::move(peers_);
    if (!absent().empty() && steady_clock::now() >= deadline_)
      throw ClusterError(fmt::format("rank {} did not connect in time", fmt::join(absent(), ", rank ")));
    wait_for_any();
    advance_strangers();
    settle_above();
    admit();
  }
}

// Of the ranks above.
std::vector<int> Gathering::absent() const {
  std::vector<int> ranks;
  for (int peer = rank_ + 1; peer < static_cast<int>(peers_.size()); ++peer) {
    if (!peers_[peer].settled) ranks.push_back(peer);
  }
  return ranks;
}

void Gathering::advance_approaches() {
  std::erase_if(approaches_, [&](Approach& approach) {
    const auto progress = approach.advance();
    const auto& who = approach.who();
    if (progress == Progress::proved) peers_[who.accepting_rank].links[who.link] = approach.take();
    if (progress == Progress::failed) {
      log::info("no further link to rank {} at {}: {}", who.accepting_rank, approach.address(),
                approach.failure());
    }
    return progress != Progress::waits;
  });
}

// Tells a rank below which links count, once none to it is under way.
void Gathering::settle_below() {
  for (int peer = 0; peer < rank_; ++peer) {
    auto& known = peers_[peer];
    const bool under_way = std::any_of(approaches_.begin(), approaches_.end(), [&](const Approach& approach) {
      return static_cast<int>(approach.who().accepting_rank) == peer;
    });
    if (known.settled || under_way) continue;
    const LinkMask mask = known.mask();
    if (!known.links.front().send_all(&mask, sizeof(mask)))
      throw ClusterError(fmt::format("rank {} closed the connection while the ranks connected", peer));
    known.settled = true;
  }
}

// Takes a rank above at its word. One whose link 0 ends, or that counts links which are not there, may come
// again.
void Gathering::settle_above() {
  for (int peer = rank_ + 1; peer < static_cast<int>(peers_.size()); ++peer) {
    auto& known = peers_[peer];
    if (known.settled || !known.links.front()) continue;
    LinkMask mask = 0;
    const auto got = ::recv(known.links.front().descriptor(), &mask, sizeof(mask), 0);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) continue;
    if (got != sizeof(mask) || !(mask & 1) || (mask & ~known.mask())) {
      known = {};
      continue;
    }
    for (std::size_t i = 0; i < known.links.size(); ++i) {
      if (!(mask >> i & 1)) known.links[i] = TcpSocket();
    }
    known.settled = true;
  }
}

void Gathering::advance_strangers() {
  std::erase_if(strangers_, [&](Stranger& stranger) {
    const auto progress = stranger.advance(rank_, static_cast<int>(peers_.size()), secret_);
    if (progress == Progress::proved) {
      const auto& who = stranger.who();
      auto& known = peers_[who.connecting_rank];
      // A link that is there, and one that comes before the first or too late, is refused.
      const bool in_turn = who.link == 0 || known.links.front();
      if (!known.settled && !known.links[who.link] && in_turn) known.links[who.link] = stranger.accept();
    }
    return progress != Progress::waits;
  });
}

// Takes every connection that waits at the listener; the oldest stranger goes where there are too many.
void Gathering::admit() {
  while (true) {
    const int descriptor = ::accept(listener_.descriptor(), nullptr, nullptr);
    if (descriptor < 0) {
      // With no descriptor left the connection stays where it is, and the listener ready.
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
        std::this_thread::sleep_for(limits::connect_retry);
      return;
    }
    strangers_.emplace_back(TcpSocket(descriptor));
    if (strangers_.size() > limits::pending_connections) strangers_.pop_front();
  }
}

// Until someone comes or says something.
void Gathering::wait_for_any() const {
  std::vector<pollfd> polled{{listener_.descriptor(), POLLIN, 0}};
  for (const auto& stranger : strangers_) polled.push_back({stranger.descriptor(), POLLIN, 0});
  for (const auto& approach : approaches_) polled.push_back(approach.polled());
  for (std::size_t peer = rank_ + 1; peer < peers_.size(); ++peer) {
    const auto& known = peers_[peer];
    if (!known.settled && known.links.front())
      polled.push_back({known.links.front().descriptor(), POLLIN, 0});
  }
  ::poll(polled.data(), polled.size(),
         timeout_ms(std::min(deadline_, steady_clock::now() + limits::connect_retry)));
}

}  // namespace

std::vector<std::vector<TcpSocket>> connect_ranks(const TcpListener& listener, int rank,
                                                  const std::vector<Endpoint>& endpoints,
                                                  const std::string& secret, Deadline deadline) {
  std::vector<Acquaintance> peers(endpoints.size());
  for (int peer = 0; peer < rank; ++peer)
    peers[peer].links.front() = connect_to_peer(endpoints[peer], rank, peer, secret, deadline);
  Gathering gathering(listener, rank, std::move(peers), secret, deadline);
  gathering.try_further_links(endpoints);
  peers = gathering.finish();
  std::vector<std::vector<TcpSocket>> links(endpoints.size());
  for (std::size_t peer = 0; peer < links.size(); ++peer) {
    for (auto& link : peers[peer].links) {
      if (link) links[peer].push_back(std::move(link));
    }
    if (links[peer].size() > 1) {
      std::vector<std::string> addresses;
      for (const auto& link : links[peer]) addresses.push_back(link.peer_address());
      log::info("{} links to rank {}: {}", addresses.size(), peer, fmt::join(addresses, ", "));
    }
  }
  return links;
}

}  // namespace tandem::parallel
