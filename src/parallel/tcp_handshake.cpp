#include "parallel/tcp_handshake.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netdb.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <list>
#include <optional>
#include <thread>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::parallel {
namespace {

using std::chrono::steady_clock;

using Nonce = std::array<unsigned char, 32>;
using Proof = std::array<unsigned char, 32>;

constexpr std::array<char, 8> magic{'T', 'A', 'N', 'D', 'E', 'M', '0', '1'};
constexpr char agreement = 1;

struct Hello {
  std::array<char, 8> magic;
  std::uint32_t rank;
  Nonce nonce;
};
static_assert(sizeof(Hello) == 44);

struct Challenge {
  Nonce nonce;
  Proof proof;
};
static_assert(sizeof(Challenge) == 64);

// What a proof is about.
struct Meeting {
  Nonce connecting_nonce, accepting_nonce;
  std::uint32_t connecting_rank, accepting_rank;
};
static_assert(sizeof(Meeting) == 72);

Nonce fresh_nonce() {
  Nonce nonce{};
  if (RAND_bytes(nonce.data(), nonce.size()) != 1)
    throw ClusterError("the system has no randomness for a nonce");
  return nonce;
}

Proof prove(const std::string& secret, char role, const Meeting& meeting) {
  std::array<unsigned char, 1 + sizeof(Meeting)> message{static_cast<unsigned char>(role)};
  std::memcpy(message.data() + 1, &meeting, sizeof(meeting));
  Proof proof{};
  unsigned int size = 0;
  if (!HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()), message.data(), message.size(),
            proof.data(), &size)) {
    throw ClusterError("OpenSSL has no HMAC-SHA256");
  }
  return proof;
}

bool equal(const Proof& a, const Proof& b) { return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

// Connected, or empty with the reason in `failure`.
TcpSocket connect_address(const std::string& address, std::uint16_t port, Deadline deadline,
                          std::string& failure) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  if (::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    failure = "no address";
    return {};
  }
  TcpSocket socket(::socket(found->ai_family, SOCK_STREAM, 0));
  int error = socket && ::connect(socket.descriptor(), found->ai_addr, found->ai_addrlen) == 0 ? 0 : errno;
  ::freeaddrinfo(found);
  if (error == EINPROGRESS) {
    error = ETIMEDOUT;
    socklen_t size = sizeof(error);
    if (socket.wait_for(POLLOUT, deadline))
      ::getsockopt(socket.descriptor(), SOL_SOCKET, SO_ERROR, &error, &size);
  }
  if (error == 0) return socket;
  failure = std::strerror(error);
  return {};
}

// The connecting side's part; false with the reason in `failure`.
bool greet(const TcpSocket& socket, std::uint32_t rank, std::uint32_t peer, const std::string& secret,
           Deadline deadline, std::string& failure) {
  const Hello hello{magic, rank, fresh_nonce()};
  Challenge challenge{};
  failure = "it does not answer as a rank";
  if (!socket.send_all(&hello, sizeof(hello)) ||
      !socket.receive_all(&challenge, sizeof(challenge), deadline)) {
    return false;
  }
  const Meeting meeting{hello.nonce, challenge.nonce, rank, peer};
  failure = "it does not prove the group's secret";
  if (!equal(challenge.proof, prove(secret, 'A', meeting))) return false;
  failure = "it refuses this rank";
  const Proof own = prove(secret, 'C', meeting);
  char answer = 0;
  return socket.send_all(own.data(), own.size()) && socket.receive_all(&answer, 1, deadline) &&
         answer == agreement;
}

TcpSocket connect_to_peer(const Endpoint& endpoint, int rank, int peer, const std::string& secret,
                          Deadline deadline) {
  std::vector<std::string> told;
  while (true) {
    std::vector<std::string> failures;
    for (const auto& address : endpoint.addresses) {
      const Deadline turn = std::min(deadline, steady_clock::now() + limits::handshake);
      std::string failure;
      TcpSocket socket = connect_address(address, endpoint.port, turn, failure);
      if (socket && greet(socket, rank, peer, secret, turn, failure)) return socket;
      failures.push_back(fmt::format("{} ({})", address, failure));
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

// A connection that has not yet proved who it is.
class Stranger {
 public:
  explicit Stranger(TcpSocket socket) : socket_(std::move(socket)) {}

  enum class State { waits, refused, proved };

  // Moves on with what has arrived. Refused, too, where its time is up.
  State advance(int rank, int world, const std::string& secret);

  int descriptor() const { return socket_.descriptor(); }
  // Of a proved one.
  int rank() const { return static_cast<int>(hello_.rank); }
  // Tells the other end that it is in.
  TcpSocket accept() {
    if (!socket_.send_all(&agreement, 1)) return {};
    return std::move(socket_);
  }

 private:
  State after_hello(int rank, int world, const std::string& secret);

  TcpSocket socket_;
  Deadline deadline_ = steady_clock::now() + limits::handshake;
  std::array<char, sizeof(Hello)> bytes_{};  // of the message that comes in: the hello, then the proof
  std::size_t received_ = 0;
  Hello hello_{};
  std::optional<Nonce> nonce_;  // ours, once the hello came
};

Stranger::State Stranger::advance(int rank, int world, const std::string& secret) {
  const std::size_t wanted = nonce_ ? sizeof(Proof) : sizeof(Hello);
  const auto got = ::recv(descriptor(), bytes_.data() + received_, wanted - received_, 0);
  if (got == 0) return State::refused;
  if (got < 0) {
    const bool later = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    return later && steady_clock::now() < deadline_ ? State::waits : State::refused;
  }
  received_ += static_cast<std::size_t>(got);
  if (received_ < wanted) return steady_clock::now() < deadline_ ? State::waits : State::refused;
  received_ = 0;
  if (!nonce_) return after_hello(rank, world, secret);
  Proof proof{};
  std::memcpy(proof.data(), bytes_.data(), proof.size());
  const Meeting meeting{hello_.nonce, *nonce_, hello_.rank, static_cast<std::uint32_t>(rank)};
  return equal(proof, prove(secret, 'C', meeting)) ? State::proved : State::refused;
}

Stranger::State Stranger::after_hello(int rank, int world, const std::string& secret) {
  std::memcpy(&hello_, bytes_.data(), sizeof(hello_));
  const bool plausible = hello_.magic == magic && hello_.rank > static_cast<std::uint32_t>(rank) &&
                         hello_.rank < static_cast<std::uint32_t>(world);
  if (!plausible) return State::refused;
  nonce_ = fresh_nonce();
  const Meeting meeting{hello_.nonce, *nonce_, hello_.rank, static_cast<std::uint32_t>(rank)};
  const Challenge challenge{*nonce_, prove(secret, 'A', meeting)};
  return socket_.send_all(&challenge, sizeof(challenge)) ? State::waits : State::refused;
}

// Takes every connection that waits at the listener; the oldest stranger goes where there are too many.
void admit(const TcpListener& listener, std::list<Stranger>& strangers) {
  while (true) {
    const int descriptor = ::accept(listener.descriptor(), nullptr, nullptr);
    if (descriptor < 0) return;
    strangers.emplace_back(TcpSocket(descriptor));
    if (strangers.size() > limits::pending_connections) strangers.pop_front();
  }
}

// Until someone comes or says something.
void wait_for_any(const TcpListener& listener, const std::list<Stranger>& strangers, Deadline deadline) {
  std::vector<pollfd> polled{{listener.descriptor(), POLLIN, 0}};
  for (const auto& stranger : strangers) polled.push_back({stranger.descriptor(), POLLIN, 0});
  ::poll(polled.data(), polled.size(),
         timeout_ms(std::min(deadline, steady_clock::now() + limits::connect_retry)));
}

// Fills in every rank above `rank`.
void accept_peers(const TcpListener& listener, int rank, std::vector<TcpSocket>& peers,
                  const std::string& secret, Deadline deadline) {
  const int world = static_cast<int>(peers.size());
  std::list<Stranger> strangers;
  const auto absent = [&] {
    std::vector<int> ranks;
    for (int peer = rank + 1; peer < world; ++peer) {
      if (!peers[peer]) ranks.push_back(peer);
    }
    return ranks;
  };
  while (!absent().empty()) {
    if (steady_clock::now() >= deadline) {
      throw ClusterError(fmt::format("rank {} did not connect in time", fmt::join(absent(), ", rank ")));
    }
    wait_for_any(listener, strangers, deadline);
    std::erase_if(strangers, [&](Stranger& stranger) {
      const auto state = stranger.advance(rank, world, secret);
      // A second connection of the same rank is refused.
      if (state == Stranger::State::proved && !peers[stranger.rank()])
        peers[stranger.rank()] = stranger.accept();
      return state != Stranger::State::waits;
    });
    admit(listener, strangers);
  }
}

}  // namespace

std::vector<TcpSocket> connect_ranks(const TcpListener& listener, int rank,
                                     const std::vector<Endpoint>& endpoints, const std::string& secret,
                                     Deadline deadline) {
  std::vector<TcpSocket> peers(endpoints.size());
  for (int peer = 0; peer < rank; ++peer) {
    peers[peer] = connect_to_peer(endpoints[peer], rank, peer, secret, deadline);
  }
  accept_peers(listener, rank, peers, secret, deadline);
  return peers;
}

}  // namespace tandem::parallel
