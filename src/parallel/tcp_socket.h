// A stream socket that closes itself.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <cstddef>
#include <string>
#include <utility>

namespace tandem::parallel {

using Deadline = std::chrono::steady_clock::time_point;

#if defined(MSG_NOSIGNAL)
inline constexpr int no_signal = MSG_NOSIGNAL;
#else
inline constexpr int no_signal = 0;  // SO_NOSIGPIPE stands for it
#endif

class TcpSocket {
 public:
  TcpSocket() = default;
  // Takes the descriptor over and makes it non-blocking, without delay, kept alive, closed on exec and free
  // of SIGPIPE.
  explicit TcpSocket(int descriptor);
  TcpSocket(TcpSocket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  TcpSocket& operator=(TcpSocket&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~TcpSocket();

  int descriptor() const { return descriptor_; }
  explicit operator bool() const { return descriptor_ >= 0; }
  // Of the two ends, numeric; empty where there is none.
  std::string own_address() const;
  std::string peer_address() const;
  // Taken by send(2), but not yet acknowledged by the other end's kernel.
  std::size_t queued_bytes() const;

  // Of a handshake's messages, which fit any socket buffer: all of `size` bytes, or false.
  bool send_all(const void* bytes, std::size_t size) const;

 private:
  int descriptor_ = -1;
};

// What is left until the deadline, for poll(2).
int timeout_ms(Deadline deadline);

}  // namespace tandem::parallel
