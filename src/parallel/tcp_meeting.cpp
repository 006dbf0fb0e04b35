#include "parallel/tcp_meeting.h"

#include <netdb.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::parallel {
namespace {

using std::chrono::steady_clock;

using Proof = std::array<unsigned char, 32>;

constexpr std::array<char, 8> magic{'T', 'A', 'N', 'D', 'E', 'M', '0', '2'};
constexpr char agreement = 1;

struct Hello {
  std::array<char, 8> magic;
  std::uint32_t rank, link;
  Nonce nonce;
};
static_assert(sizeof(Hello) == 48);

struct Challenge {
  Nonce nonce;
  Proof proof;
};
static_assert(sizeof(Challenge) == 64);

// What a proof is about.
struct Meeting {
  Nonce connecting_nonce, accepting_nonce;
  Introduction who;
};
static_assert(sizeof(Meeting) == 76);

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

// On its way, or empty with the reason in `failure`.
TcpSocket start_connecting(const std::string& address, std::uint16_t port, std::string& failure) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  if (::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    failure = "no address";
    return {};
  }
  TcpSocket socket(::socket(found->ai_family, SOCK_STREAM, 0));
  const bool started = socket && (::connect(socket.descriptor(), found->ai_addr, found->ai_addrlen) == 0 ||
                                  errno == EINPROGRESS);
  if (!started) failure = std::strerror(errno);
  ::freeaddrinfo(found);
  return started ? std::move(socket) : TcpSocket();
}

}  // namespace

Letter::State Letter::receive(const TcpSocket& socket, std::size_t size) {
  const auto got = ::recv(socket.descriptor(), bytes_.data() + received_, size - received_, 0);
  if (got == 0) return State::ended;
  if (got < 0)
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? State::partly : State::ended;
  received_ += static_cast<std::size_t>(got);
  if (received_ < size) return State::partly;
  received_ = 0;
  return State::whole;
}

Approach::Approach(const std::string& address, std::uint16_t port, const Introduction& who,
                   std::string secret, Deadline deadline)
    : address_(address), who_(who), secret_(std::move(secret)), deadline_(deadline) {
  socket_ = start_connecting(address, port, failure_);
}

Progress Approach::fail(std::string why) {
  failure_ = std::move(why);
  return Progress::failed;
}

pollfd Approach::polled() const {
  const bool connecting = stage_ == Stage::connecting;
  return {socket_.descriptor(), static_cast<short>(connecting ? POLLOUT : POLLIN), 0};
}

Progress Approach::advance() {
  if (!socket_) return Progress::failed;
  const bool late = steady_clock::now() >= deadline_;
  if (stage_ == Stage::connecting) {
    pollfd ready = polled();
    if (::poll(&ready, 1, 0) <= 0) return late ? fail(std::strerror(ETIMEDOUT)) : Progress::waits;
    return connected();
  }
  const bool challenged = stage_ == Stage::challenged;
  const char* const refusal = challenged ? "it does not answer as a rank" : "it refuses this rank";
  switch (letter_.receive(socket_, challenged ? sizeof(Challenge) : sizeof(agreement))) {
    case Letter::State::partly:
      return late ? fail(refusal) : Progress::waits;
    case Letter::State::ended:
      return fail(refusal);
    case Letter::State::whole:
      break;
  }
  if (challenged) return answer_challenge();
  return *letter_.data() == agreement ? Progress::proved : fail(refusal);
}

Progress Approach::connected() {
  int error = 0;
  socklen_t size = sizeof(error);
  ::getsockopt(socket_.descriptor(), SOL_SOCKET, SO_ERROR, &error, &size);
  if (error != 0) return fail(std::strerror(error));
  nonce_ = fresh_nonce();
  const Hello hello{magic, who_.connecting_rank, who_.link, nonce_};
  if (!socket_.send_all(&hello, sizeof(hello))) return fail("it does not answer as a rank");
  stage_ = Stage::challenged;
  return Progress::waits;
}

Progress Approach::answer_challenge() {
  Challenge challenge{};
  std::memcpy(&challenge, letter_.data(), sizeof(challenge));
  const Meeting meeting{nonce_, challenge.nonce, who_};
  if (!equal(challenge.proof, prove(secret_, 'A', meeting)))
    return fail("it does not prove the group's secret");
  const Proof own = prove(secret_, 'C', meeting);
  if (!socket_.send_all(own.data(), own.size())) return fail("it refuses this rank");
  stage_ = Stage::judged;
  return Progress::waits;
}

Stranger::Stranger(TcpSocket socket)
    : socket_(std::move(socket)), deadline_(steady_clock::now() + limits::handshake) {}

Progress Stranger::advance(int rank, int ranks, const std::string& secret) {
  switch (letter_.receive(socket_, nonce_ ? sizeof(Proof) : sizeof(Hello))) {
    case Letter::State::partly:
      return steady_clock::now() < deadline_ ? Progress::waits : Progress::failed;
    case Letter::State::ended:
      return Progress::failed;
    case Letter::State::whole:
      break;
  }
  if (!nonce_) return after_hello(rank, ranks, secret);
  Proof proof{};
  std::memcpy(proof.data(), letter_.data(), proof.size());
  const Proof right = prove(secret, 'C', {connecting_nonce_, *nonce_, who_});
  return equal(proof, right) ? Progress::proved : Progress::failed;
}

Progress Stranger::after_hello(int rank, int ranks, const std::string& secret) {
  Hello hello{};
  std::memcpy(&hello, letter_.data(), sizeof(hello));
  const bool plausible = hello.magic == magic && hello.rank > static_cast<std::uint32_t>(rank) &&
                         hello.rank < static_cast<std::uint32_t>(ranks) && hello.link < limits::links;
  if (!plausible) return Progress::failed;
  who_ = {hello.rank, static_cast<std::uint32_t>(rank), hello.link};
  connecting_nonce_ = hello.nonce;
  nonce_ = fresh_nonce();
  const Challenge challenge{*nonce_, prove(secret, 'A', {connecting_nonce_, *nonce_, who_})};
  return socket_.send_all(&challenge, sizeof(challenge)) ? Progress::waits : Progress::failed;
}

TcpSocket Stranger::accept() {
  if (!socket_.send_all(&agreement, sizeof(agreement))) return {};
  return std::move(socket_);
}

}  // namespace tandem::parallel
