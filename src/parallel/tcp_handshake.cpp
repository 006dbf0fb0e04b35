#include "parallel/tcp_handshake.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

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

using std::chrono::milliseconds;
using std::chrono::steady_clock;

using Nonce = std::array<unsigned char, 32>;
using Proof = std::array<unsigned char, 32>;

constexpr char magic[] = {'T', 'A', 'N', 'D', 'E', 'M', '0', '1'};

struct Hello {
  char magic[8];
  std::uint32_t rank;
  Nonce nonce;
};
static_assert(sizeof(Hello) == 44);

struct Challenge {
  Nonce nonce;
  Proof proof;
};

Nonce fresh_nonce() {
  Nonce nonce{};
  if (RAND_bytes(nonce.data(), nonce.size()) != 1)
    throw ClusterError("the system has no randomness for a nonce");
  return nonce;
}

Proof prove(const std::string& secret, char role, const Nonce& connecting, const Nonce& accepting,
            std::uint32_t connecting_rank, std::uint32_t accepting_rank) {
  std::string message(1, role);
  message.append(connecting.begin(), connecting.end());
  message.append(accepting.begin(), accepting.end());
  message.append(reinterpret_cast<const char*>(&connecting_rank), sizeof(connecting_rank));
  message.append(reinterpret_cast<const char*>(&accepting_rank), sizeof(accepting_rank));
  Proof proof{};
  unsigned int size = 0;
  HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
       reinterpret_cast<const unsigned char*>(message.data()), message.size(), proof.data(), &size);
  return proof;
}

bool equal(const Proof& a, const Proof& b) { return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

void prepare(int descriptor) {
  const int on = 1;
  ::fcntl(descriptor, F_SETFD, FD_CLOEXEC);
  ::fcntl(descriptor, F_SETFL, ::fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  ::setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  ::setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
#if defined(SO_NOSIGPIPE)
  ::setsockopt(descriptor, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
#endif
}

int timeout_ms(Deadline deadline) {
  const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left + 1, 0, 1'000'000));
}

bool wait_for(int descriptor, short events, Deadline deadline) {
  pollfd polled{descriptor, events, 0};
  while (true) {
    const int ready = ::poll(&polled, 1, timeout_ms(deadline));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

// All of `bytes` by the deadline, or false. Handshake messages fit any socket buffer.
bool send_all(int descriptor, const void* bytes, std::size_t size) {
  return ::send(descriptor, bytes, size, MSG_NOSIGNAL) == static_cast<ssize_t>(size);
}

bool receive_all(int descriptor, void* target, std::size_t size, Deadline deadline) {
  auto* at = static_cast<char*>(target);
  while (size > 0) {
    const auto got = ::recv(descriptor, at, size, 0);
    if (got > 0) {
      at += got;
      size -= static_cast<std::size_t>(got);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR) || !wait_for(descriptor, POLLIN, deadline)) {
      return false;
    }
  }
  return true;
}

// A connected descriptor, or -1.
int connect_address(const std::string& address, std::uint16_t port, Deadline deadline) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  if (::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return -1;
  const int descriptor = ::socket(found->ai_family, SOCK_STREAM, 0);
  int status = -1;
  if (descriptor >= 0) {
    prepare(descriptor);
    status = ::connect(descriptor, found->ai_addr, found->ai_addrlen);
    if (status != 0 && errno == EINPROGRESS && wait_for(descriptor, POLLOUT, deadline)) {
      int error = 0;
      socklen_t size = sizeof(error);
      ::getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size);
      status = error == 0 ? 0 : -1;
    }
  }
  ::freeaddrinfo(found);
  if (status == 0) return descriptor;
  if (descriptor >= 0) ::close(descriptor);
  return -1;
}

bool greet(int descriptor, int rank, int peer, const std::string& secret, Deadline deadline) {
  Hello hello{};
  std::memcpy(hello.magic, magic, sizeof(magic));
  hello.rank = static_cast<std::uint32_t>(rank);
  hello.nonce = fresh_nonce();
  Challenge challenge{};
  if (!send_all(descriptor, &hello, sizeof(hello)) ||
      !receive_all(descriptor, &challenge, sizeof(challenge), deadline)) {
    return false;
  }
  const auto proof = [&](char role) { return prove(secret, role, hello.nonce, challenge.nonce, rank, peer); };
  if (!equal(challenge.proof, proof('A'))) return false;
  const Proof own = proof('C');
  char agreed = 0;
  return send_all(descriptor, own.data(), own.size()) && receive_all(descriptor, &agreed, 1, deadline) &&
         agreed == 1;
}

// A connection that has not yet proved who it is.
struct Stranger {
  int descriptor;
  Deadline deadline;
  std::array<char, sizeof(Hello) + sizeof(Proof)> bytes{};
  std::size_t received = 0;
  std::optional<Nonce> nonce = std::nullopt;  // ours, once the hello came

  // Moves on with what has arrived: its rank once proved, -1 where it is to be dropped, nothing while it
  // lasts.
  std::optional<int> advance(int rank, int world, const std::string& secret);
};

std::optional<int> Stranger::advance(int rank, int world, const std::string& secret) {
  const std::size_t wanted = nonce ? bytes.size() : sizeof(Hello);
  const auto got = ::recv(descriptor, bytes.data() + received, wanted - received, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return std::nullopt;
  if (got <= 0) return -1;
  received += static_cast<std::size_t>(got);
  if (received < wanted) return std::nullopt;
  Hello hello{};
  std::memcpy(&hello, bytes.data(), sizeof(hello));
  const bool plausible = std::memcmp(hello.magic, magic, sizeof(magic)) == 0 &&
                         hello.rank > static_cast<std::uint32_t>(rank) &&
                         hello.rank < static_cast<std::uint32_t>(world);
  if (!plausible) return -1;
  if (!nonce) {
    nonce = fresh_nonce();
    const Challenge challenge{*nonce, prove(secret, 'A', hello.nonce, *nonce, hello.rank, rank)};
    return send_all(descriptor, &challenge, sizeof(challenge)) ? std::nullopt : std::optional(-1);
  }
  Proof proof{};
  std::memcpy(proof.data(), bytes.data() + sizeof(Hello), proof.size());
  const char agreed = 1;
  const bool proved = equal(proof, prove(secret, 'C', hello.nonce, *nonce, hello.rank, rank));
  return proved && send_all(descriptor, &agreed, 1) ? static_cast<int>(hello.rank) : -1;
}

// Takes every connection that waits at the listener; the oldest stranger goes where there are too many.
void admit(const TcpListener& listener, std::list<Stranger>& strangers) {
  while (true) {
    const int descriptor = ::accept(listener.descriptor(), nullptr, nullptr);
    if (descriptor < 0) return;
    prepare(descriptor);
    strangers.push_back({descriptor, steady_clock::now() + limits::handshake});
    if (strangers.size() > limits::pending_connections) {
      ::close(strangers.front().descriptor);
      strangers.pop_front();
    }
  }
}

}  // namespace

int connect_to_peer(const Endpoint& endpoint, int rank, int peer, const std::string& secret,
                    Deadline deadline) {
  while (true) {
    for (const auto& address : endpoint.addresses) {
      const Deadline turn = std::min(deadline, steady_clock::now() + limits::handshake);
      const int descriptor = connect_address(address, endpoint.port, turn);
      if (descriptor < 0) continue;
      if (greet(descriptor, rank, peer, secret, turn)) return descriptor;
      ::close(descriptor);
    }
    if (steady_clock::now() >= deadline) {
      throw ClusterError(fmt::format("cannot reach rank {} at {}, port {}: is a firewall in the way?", peer,
                                     fmt::join(endpoint.addresses, ", "), endpoint.port));
    }
    std::this_thread::sleep_for(limits::connect_retry);
  }
}

std::vector<int> accept_peers(const TcpListener& listener, int rank, int world, const std::string& secret,
                              Deadline deadline) {
  std::vector<int> peers(world, -1);
  std::list<Stranger> strangers;
  int missing = world - rank - 1;
  while (missing > 0 && steady_clock::now() < deadline) {
    std::vector<pollfd> polled{{listener.descriptor(), POLLIN, 0}};
    for (const auto& stranger : strangers) polled.push_back({stranger.descriptor, POLLIN, 0});
    ::poll(polled.data(), polled.size(),
           std::min(timeout_ms(deadline), static_cast<int>(limits::connect_retry.count())));
    for (auto stranger = strangers.begin(); stranger != strangers.end();) {
      auto result = stranger->advance(rank, world, secret);
      if (!result && steady_clock::now() > stranger->deadline) result = -1;
      if (!result) {
        ++stranger;
        continue;
      }
      if (*result >= 0 && peers[*result] < 0) {
        peers[*result] = stranger->descriptor;
        --missing;
      } else {
        ::close(stranger->descriptor);
      }
      stranger = strangers.erase(stranger);
    }
    admit(listener, strangers);
  }
  for (const auto& stranger : strangers) ::close(stranger.descriptor);
  if (missing == 0) return peers;
  std::vector<int> absent;
  for (int peer = rank + 1; peer < world; ++peer) {
    if (peers[peer] < 0)
      absent.push_back(peer);
    else
      ::close(peers[peer]);
  }
  throw ClusterError(fmt::format("rank {} did not connect in time", fmt::join(absent, ", ")));
}

}  // namespace tandem::parallel
