// One message to a peer and one from it, while they are under way over the peer's links.
#pragma once

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/tcp_frame.h"
#include "parallel/tcp_pace.h"
#include "parallel/tcp_socket.h"

namespace tandem::parallel {

// One connection to a peer, with the chunk that it sends and the one that it receives.
struct Link {
  TcpSocket socket;
  std::string address;  // the peer's, for messages; empty where this is the only link

  Frame own;
  std::span<const char> outgoing;
  std::size_t to_send = 0, sent = 0;  // of frame and chunk
  std::uint64_t handed = 0;           // bytes of all chunks so far

  Frame got;
  std::size_t received = 0;  // of frame and chunk
  bool ended = false;        // the peer closed it

  bool sends() const { return sent < to_send; }
};

struct Peer {
  std::vector<Link> links;
  std::vector<Pace> paces;  // of the links
  std::uint64_t sent_messages = 0;
  std::uint64_t received_messages = 0;
};

// One message to a peer and one from it; nothing: none goes that way. A message may be empty.
struct Transfer {
  int peer = 0;
  std::optional<std::span<const char>> outgoing;
  std::optional<std::span<char>> incoming;

  // Bytes of the larger one.
  std::size_t size() const {
    return std::max(outgoing ? outgoing->size() : 0, incoming ? incoming->size() : 0);
  }
};

class Flow {
 public:
  // ClusterError like move().
  Flow(Peer& peer, const Transfer& transfer, const Operation& operation);

  bool finished() const { return !sends() && !receives(); }
  // Of both messages, the bytes at the beginning that have been moved; all where there is no message.
  std::size_t moved_prefix() const;

  // Moves what the links take and give; whether anything moved. ClusterError where the peer closed a link, is
  // out of step, or a link broke.
  bool move(Deadline now);

  Deadline last_move() const { return last_move_; }
  // Adds what must become ready for move() to do something; whether it may also be the time that passes.
  bool add_polled(std::vector<pollfd>& polled) const;
  std::string stall(std::chrono::milliseconds timeout) const;

 private:
  bool sends() const { return open_chunks_ > 0 || next_ < outgoing_.size(); }
  bool receives() const { return awaited_chunks_ > 0; }

  void start_sending(const Transfer& transfer);
  void start_receiving(const Transfer& transfer);

  bool send_some();
  void watch(Deadline now);
  bool hand_out(std::size_t link);
  void open_chunk(Link& link, std::uint64_t offset, std::span<const char> chunk);
  bool write(Link& link);

  bool receive_some();
  bool read(Link& link);
  bool is_early(const Link& link) const;
  bool awaits(const Link& link) const;
  std::span<char> chunk_of(const Link& link) const;
  void check_frame(Link& link);
  void close_chunk(Link& link);
  void note_end(Link& link);
  bool all_ended() const;
  std::vector<std::string> stuck_links() const;

  bool account(const Link& link, ssize_t bytes, std::size_t& total) const;
  [[noreturn]] void throw_closed(const Link& link) const;

  Peer* peer_;
  int rank_;
  Operation operation_;

  std::span<const char> outgoing_;
  std::span<Link> out_links_;  // the first alone, or all
  std::uint64_t out_number_ = 0;
  std::size_t next_ = 0;         // what is before it has been handed to links
  std::size_t open_chunks_ = 0;  // and is not all written yet

  std::span<char> incoming_;
  std::span<Link> in_links_;
  Frame expected_;
  std::size_t awaited_chunks_ = 0;  // the announcement is one
  std::vector<bool> arrived_;       // by chunk; the last: the announcement. Empty: all is one chunk.
  std::size_t arrived_prefix_ = 0;  // chunks

  Deadline last_move_ = std::chrono::steady_clock::now();
};

}  // namespace tandem::parallel
