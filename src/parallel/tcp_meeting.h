// The two ends of one connection's handshake, moved on by whoever polls.
#pragma once

#include <poll.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "parallel/tcp_socket.h"

namespace tandem::parallel {

using Nonce = std::array<unsigned char, 32>;

// Which link of which ranks.
struct Introduction {
  std::uint32_t connecting_rank = 0;
  std::uint32_t accepting_rank = 0;
  std::uint32_t link = 0;
};

enum class Progress { waits, failed, proved };

// Bytes of a message as they come in.
class Letter {
 public:
  enum class State { partly, whole, ended };
  // Takes in what has arrived of a message of `size` bytes; a whole one is read once.
  State receive(const TcpSocket& socket, std::size_t size);
  const char* data() const { return bytes_.data(); }

 private:
  std::array<char, 64> bytes_{};
  std::size_t received_ = 0;
};

// The connecting end.
class Approach {
 public:
  // `address`: numeric.
  Approach(const std::string& address, std::uint16_t port, const Introduction& who, std::string secret,
           Deadline deadline);

  // Fails at the deadline, too.
  Progress advance();
  pollfd polled() const;
  const std::string& address() const { return address_; }
  const Introduction& who() const { return who_; }
  // Why it failed.
  const std::string& failure() const { return failure_; }
  // Of a proved one.
  TcpSocket take() { return std::move(socket_); }

 private:
  enum class Stage { connecting, challenged, judged };

  Progress fail(std::string why);
  Progress connected();
  Progress answer_challenge();

  std::string address_;
  Introduction who_;
  std::string secret_;
  Deadline deadline_;
  TcpSocket socket_;
  Stage stage_ = Stage::connecting;
  Letter letter_;
  Nonce nonce_{};
  std::string failure_;
};

// The accepting end: a connection that has not yet proved who it is. Has limits::handshake to do so.
class Stranger {
 public:
  explicit Stranger(TcpSocket socket);

  // Fails where its time is up, too.
  Progress advance(int rank, int ranks, const std::string& secret);

  int descriptor() const { return socket_.descriptor(); }
  // Of a proved one.
  const Introduction& who() const { return who_; }
  // Tells the other end that it is in; empty where that fails.
  TcpSocket accept();

 private:
  Progress after_hello(int rank, int ranks, const std::string& secret);

  TcpSocket socket_;
  Deadline deadline_;
  Letter letter_;
  Introduction who_;
  Nonce connecting_nonce_{};
  std::optional<Nonce> nonce_;  // ours, once the hello came
};

}  // namespace tandem::parallel
