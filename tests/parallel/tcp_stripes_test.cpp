// Ranks with several links to each other, laid over 127/8. Elsewhere than on Linux 127.0.1.1 is nobody's.
#if defined(__linux__)
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/tcp.h>
#include <mlx/distributed/ops.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "base/error.h"
#include "base/limits.h"
#include "parallel/ranks.h"

namespace tandem::parallel {
namespace {

using Links = std::vector<std::vector<TcpSocket>>;

Links connect(const MeetingPoint& meeting, int rank) {
  return connect_ranks(meeting.listener(rank), rank, meeting.endpoints, meeting.secret,
                       steady_clock::now() + milliseconds(5000));
}

std::vector<char> bytes_from(int sender, int receiver, std::size_t size) {
  std::vector<char> bytes(size);
  std::uint32_t state = sender * 64 + receiver + 1;
  for (auto& byte : bytes) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return bytes;
}

// A message each way with each peer, of its own size both ways; whether all came as they were sent.
bool exchange(TcpMesh& mesh, std::size_t out_bytes, std::size_t in_bytes) {
  std::vector<std::vector<char>> outgoing, incoming;
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < mesh.size(); ++peer) {
    outgoing.push_back(bytes_from(mesh.rank(), peer, out_bytes));
    incoming.emplace_back(in_bytes);
  }
  for (int peer = 0; peer < mesh.size(); ++peer) {
    if (peer != mesh.rank()) transfers.push_back({peer, outgoing[peer], incoming[peer]});
  }
  mesh.exchange({FrameKind::all_sum}, transfers);
  for (int peer = 0; peer < mesh.size(); ++peer) {
    if (peer != mesh.rank() && incoming[peer] != bytes_from(peer, mesh.rank(), in_bytes)) return false;
  }
  return true;
}

std::size_t bytes_received(const TcpSocket& socket) {
  tcp_info info{};
  socklen_t size = sizeof(info);
  ::getsockopt(socket.descriptor(), IPPROTO_TCP, TCP_INFO, &info, &size);
  return info.tcpi_bytes_received;
}

TEST(TcpStripes, EverySizeArrivesOverEveryNumberOfLinks) {
  for (const int links : {1, 2, 3, 8}) {
    const MeetingPoint meeting(2, std::vector<std::vector<int>>(links, {0, 1}));
    EXPECT_EQ(run_ranks(2,
                        [&](int rank) {
                          TcpMesh mesh(rank, connect(meeting, rank), milliseconds(5000));
                          EXPECT_EQ(mesh.most_links(), static_cast<std::size_t>(links));
                          const std::size_t bound = limits::stripe_bytes, chunk = limits::stripe_chunk_bytes;
                          for (const std::size_t size :
                               {std::size_t{0}, std::size_t{1}, bound - 1, bound, bound + 1, 9 * chunk - 1,
                                9 * chunk, 9 * chunk + 1, std::size_t{20'000'003}, std::size_t{5}}) {
                            EXPECT_TRUE(exchange(mesh, size, size)) << links << " links, " << size;
                            // Large one way, small the other.
                            EXPECT_TRUE(exchange(mesh, rank == 0 ? size : 3, rank == 0 ? 3 : size)) << size;
                          }
                        }),
              std::vector<std::string>(2));
  }
}

// A sender that is several messages ahead: chunks of later ones wait on the links.
TEST(TcpStripes, MessagesStayApart) {
  const MeetingPoint meeting(2, {{0, 1}, {0, 1}, {0, 1}});
  EXPECT_EQ(run_ranks(2,
                      [&](int rank) {
                        TcpMesh mesh(rank, connect(meeting, rank), milliseconds(5000));
                        std::size_t size = 1;
                        for (int i = 0; i < 300; ++i, size = size * 48271 % 1'000'003) {
                          const auto sent = bytes_from(0, i, size);
                          auto bytes = rank == 0 ? sent : std::vector<char>(size);
                          const Transfer transfer =
                              rank == 0 ? Transfer{1, bytes, std::nullopt} : Transfer{0, std::nullopt, bytes};
                          mesh.exchange({FrameKind::message}, {&transfer, 1});
                          ASSERT_EQ(bytes, sent) << i;
                        }
                      }),
            std::vector<std::string>(2));
}

TEST(TcpStripes, RanksWithOneAndTwoLinksSumAlike) {
  // 0 and 1 have two cables; 1 and 2, and 0 and 2, one.
  const MeetingPoint meeting(3, {{0, 1}, {0, 1, 2}});
  for (const Wire wire : {Wire::float32, Wire::bfloat16}) {
    EXPECT_EQ(
        run_ranks(
            3,
            [&](int rank) {
              const auto group = meeting.group(rank, {milliseconds(10'000), milliseconds(10'000), wire});
              for (const int count : {1, 1000, 100'000, 3'000'001}) {
                using namespace mlx::core;
                const array base = astype(arange(count) % array(101), float32);
                const array x = base + array(rank * 1.0f), expected = base * array(3.0f) + array(3.0f);
                const array total = distributed::all_sum(x, group, Device::cpu);
                EXPECT_TRUE(wire == Wire::float32 ? array_equal(total, expected).item<bool>()
                                                  : allclose(total, expected, 1e-2).item<bool>())
                    << count;
                const array all = distributed::all_gather(x, group, Device::cpu);
                const array parts = concatenate({base, base + array(1.0f), base + array(2.0f)});
                EXPECT_TRUE(array_equal(all, parts).item<bool>()) << count;
              }
            }),
        std::vector<std::string>(3));
  }
}

// Three peers, which no window of whole elements is divided by.
TEST(TcpStripes, SlicesOfAWindowAreWholeElements) {
  using namespace mlx::core;
  const MeetingPoint meeting(4, {{0, 1, 2, 3}, {0, 1, 2, 3}});
  EXPECT_EQ(run_ranks(4,
                      [&](int rank) {
                        const auto group = meeting.group(rank, {.stripe_window_bytes = 1 << 20});
                        for (const Dtype dtype : {float32, bfloat16, int64}) {
                          // Parts of 1.5 MB and more; sums of at most 126, which all three types hold.
                          const array x = astype(arange(3'000'001) % array(31), dtype);
                          const array total =
                              distributed::all_sum(x + array(rank, dtype), group, Device::cpu);
                          EXPECT_TRUE(array_equal(total, x * array(4, dtype) + array(6, dtype)).item<bool>())
                              << size_of(dtype);
                        }
                      }),
            std::vector<std::string>(4));
}

TEST(TcpStripes, LargeMessagesUseAllLinksAndSmallOnesTheFirst) {
  const MeetingPoint meeting(2, {{0, 1}, {0, 1}});
  EXPECT_EQ(run_ranks(2,
                      [&](int rank) {
                        auto links = connect(meeting, rank);
                        ASSERT_EQ(links[1 - rank].size(), 2u);
                        const TcpSocket second(::dup(links[1 - rank][1].descriptor()));
                        const std::size_t before = bytes_received(second);
                        TcpMesh mesh(rank, std::move(links), milliseconds(5000));
                        for (int i = 0; i < 10; ++i) EXPECT_TRUE(exchange(mesh, 100'000, 100'000));
                        EXPECT_EQ(bytes_received(second), before);
                        for (int i = 0; i < 10; ++i) EXPECT_TRUE(exchange(mesh, 10'000'000, 10'000'000));
                        EXPECT_GT(bytes_received(second), 10'000'000u);
                      }),
            std::vector<std::string>(2));
}

TEST(TcpStripes, ACutLinkEndsTheGroupAndIsNamed) {
  for (const int how : {SHUT_WR, SHUT_RDWR}) {
    for (const int link : {0, 1}) {
      const MeetingPoint meeting(2, {{0, 1}, {0, 1}});
      const auto start = steady_clock::now();
      const auto errors = run_ranks(2, [&](int rank) {
        auto links = connect(meeting, rank);
        const TcpSocket cut(::dup(links[1 - rank][link].descriptor()));
        TcpMesh mesh(rank, std::move(links), milliseconds(1000));
        std::thread cutter;
        if (rank == 0) {
          cutter = std::thread([&] {
            std::this_thread::sleep_for(milliseconds(50));
            ::shutdown(cut.descriptor(), how);
          });
        }
        try {
          while (exchange(mesh, 30'000'000, 30'000'000)) {
          }
          ADD_FAILURE() << "wrong bytes";
        } catch (...) {
          if (cutter.joinable()) cutter.join();
          throw;
        }
      });
      EXPECT_EQ(errors[0],
                "rank 1 closed the connection at 127.0.0.1 during all_sum");  // it called from there
      EXPECT_EQ(errors[1].find("rank 0 closed the connection at 127.0."), 0u) << errors[1];
      EXPECT_LT(seconds_since(start), 5);
    }
  }
}

// A cable that takes bytes and brings none: the second link ends at a socket that nobody reads.
TEST(TcpStripes, ADeadLinkIsNamedAtTheDeadline) {
  const MeetingPoint meeting(2, {{0, 1}, {0, 1}});
  std::vector<Links> links(2);
  EXPECT_EQ(run_ranks(2, [&](int rank) { links[rank] = connect(meeting, rank); }),
            std::vector<std::string>(2));
  std::array<int, 2> dead_0{}, dead_1{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, dead_0.data()), 0);
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, dead_1.data()), 0);
  const std::array<TcpSocket, 2> far{TcpSocket(dead_0[1]), TcpSocket(dead_1[1])};
  for (int rank = 0; rank < 2; ++rank) {
    const int dead = rank == 0 ? dead_0[0] : dead_1[0];
    ASSERT_GE(::dup2(dead, links[rank][1 - rank][1].descriptor()), 0);
    ::fcntl(links[rank][1 - rank][1].descriptor(), F_SETFL, O_NONBLOCK);
    ::close(dead);
  }
  const auto start = steady_clock::now();
  const auto errors = run_ranks(2, [&](int rank) {
    TcpMesh mesh(rank, std::move(links[rank]), milliseconds(500));
    exchange(mesh, 30'000'000, 30'000'000);
  });
  for (const auto& error : errors) {
    EXPECT_TRUE(error.find("nothing for 0.5 s during all_sum") != std::string::npos ||
                error.find("closed the connection at ") != std::string::npos)
        << error;
  }
  EXPECT_LT(seconds_since(start), 5);
}

// The same in a stream one way, whose sender is done with a message once its kernel has it: the frame of the
// next one waits on the healthy link.
TEST(TcpStripes, AFrameThatCameEarlyDoesNotBlameItsLink) {
  const MeetingPoint meeting(2, {{0, 1}, {0, 1}});
  std::vector<Links> links(2);
  EXPECT_EQ(run_ranks(2, [&](int rank) { links[rank] = connect(meeting, rank); }),
            std::vector<std::string>(2));
  const std::string healthy = links[1][0][0].peer_address(), dead = links[1][0][1].peer_address();
  ASSERT_NE(healthy, dead);
  std::atomic<bool> over = false;
  const auto errors = run_ranks(2, [&](int rank) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
    const TcpSocket here(ends[0]), nowhere(ends[1]);
    const int second = links[rank][1 - rank][1].descriptor();
    TcpMesh mesh(rank, std::move(links[rank]), milliseconds(500));  // it knows the cables' addresses
    ASSERT_GE(::dup2(here.descriptor(), second), 0);
    std::vector<char> bytes(limits::stripe_bytes);
    const Transfer transfer = rank == 0 ? Transfer{1, bytes, std::nullopt} : Transfer{0, std::nullopt, bytes};
    if (rank == 0) {
      for (int i = 0; i < 2; ++i) mesh.exchange({FrameKind::message}, {&transfer, 1});
      while (!over) std::this_thread::sleep_for(milliseconds(5));
      return;
    }
    EXPECT_THROW(mesh.exchange({FrameKind::message}, {&transfer, 1}), ClusterError);
    over = true;
    mesh.check();
  });
  EXPECT_EQ(errors[0], "");
  EXPECT_EQ(errors[1], "rank 0 sent nothing for 0.5 s during send, with data on its way at " + dead);
}

TEST(TcpStripes, OutOfStepIsSaidWhateverTheSizes) {
  struct {
    std::size_t size_0, size_1;
  } const rows[] = {{1000, 1'000'000}, {1'000'000, 1000}, {1'000'000, 2'000'000}, {0, 300'000}};
  for (const auto& row : rows) {
    const MeetingPoint meeting(2, {{0, 1}, {0, 1}});
    const auto start = steady_clock::now();
    const auto errors = run_ranks(2, [&](int rank) {
      TcpMesh mesh(rank, connect(meeting, rank), milliseconds(5000));
      exchange(mesh, 400'000, 400'000);
      const std::size_t size = rank == 0 ? row.size_0 : row.size_1;
      exchange(mesh, size, size);
    });
    const bool said = errors[0].find("rank 1 is out of step: it sent all_sum of ") == 0 ||
                      errors[1].find("rank 0 is out of step: it sent all_sum of ") == 0;
    EXPECT_TRUE(said) << errors[0] << "\n" << errors[1];
    EXPECT_FALSE(errors[0].empty() || errors[1].empty());
    EXPECT_LT(seconds_since(start), 2);
  }
}

// What an out-of-step or hostile peer may say about a chunk.
TEST(TcpStripes, AChunkWithoutAPlaceIsRefused) {
  const std::size_t size = 300'000;
  struct {
    const char* name;
    int link;
    std::vector<std::uint64_t> offsets;
  } const rows[] = {{"off the grid", 1, {1}},
                    {"past the end", 1, {5 * limits::stripe_chunk_bytes}},
                    {"far past the end", 1, {announcement - 65535}},
                    {"twice", 1, {65536, 65536}},
                    {"announced elsewhere", 1, {announcement}},
                    {"announced twice", 0, {announcement, announcement}}};
  for (const auto& row : rows) {
    std::array<int, 2> first{}, second{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, first.data()), 0);
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, second.data()), 0);
    Links links(2);
    links[1].emplace_back(first[0]);
    links[1].emplace_back(second[0]);
    const std::array<TcpSocket, 2> other{TcpSocket(first[1]), TcpSocket(second[1])};
    TcpMesh mesh(0, std::move(links), milliseconds(1000));
    for (const auto offset : row.offsets) {
      const Frame frame = frame_of({FrameKind::message}, 0, size, offset);
      ASSERT_TRUE(other[row.link].send_all(&frame, sizeof(frame)));
      const std::vector<char> chunk(offset == announcement ? 0 : limits::stripe_chunk_bytes);
      ASSERT_TRUE(chunk.empty() || other[row.link].send_all(chunk.data(), chunk.size()));
    }
    std::vector<char> bytes(size);
    const Transfer transfer{1, std::nullopt, bytes};
    try {
      mesh.exchange({FrameKind::message}, {&transfer, 1});
      ADD_FAILURE() << row.name;
    } catch (const ClusterError& error) {
      EXPECT_NE(std::string(error.what()).find("which has no place"), std::string::npos)
          << row.name << ": " << error.what();
    }
  }
}

TcpSocket stranger(const std::string& address, std::uint16_t port) {
  TcpSocket socket(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  ::inet_pton(AF_INET, address.c_str(), &to.sin_addr);
  ::connect(socket.descriptor(), reinterpret_cast<sockaddr*>(&to), sizeof(to));
  return socket;
}

TEST(TcpStripes, GarbageOnASecondLinkDisturbsNobody) {
  const MeetingPoint meeting(2, {{0, 1}, {0, 1}});
  std::vector<TcpSocket> strangers;
  for (const std::string& bytes :
       {std::string(), std::string("GET / HTTP/1.1\r\n\r\n"), std::string(500, '\xff'),
        "TANDEM02" + std::string("\1\0\0\0\1\0\0\0", 8) + std::string(64, 'x')}) {
    strangers.push_back(stranger("127.0.2.1", meeting.endpoints[0].port));
    strangers.back().send_all(bytes.data(), bytes.size());
  }
  const auto start = steady_clock::now();
  EXPECT_EQ(run_ranks(2,
                      [&](int rank) {
                        TcpMesh mesh(rank, connect(meeting, rank), milliseconds(5000));
                        EXPECT_EQ(mesh.most_links(), 2u);
                        EXPECT_TRUE(exchange(mesh, 1'000'000, 1'000'000));
                      }),
            std::vector<std::string>(2));
  EXPECT_LT(seconds_since(start), 1);
}

// Further addresses where somebody is silent, and where nobody is.
TEST(TcpStripes, AFurtherLinkThatFailsIsLeftOut) {
  MeetingPoint accepting(2);
  const MeetingPoint connecting(2, {{0, 1}, {0, 1}});
  const TcpSocket silent(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(accepting.endpoints[0].port);
  ::inet_pton(AF_INET, "127.0.1.77", &address.sin_addr);
  ASSERT_EQ(::bind(silent.descriptor(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(silent.descriptor(), 5), 0);
  accepting.endpoints[0].addresses = {"127.0.0.1", "127.0.1.77", "127.0.2.77"};
  const auto start = steady_clock::now();
  EXPECT_EQ(run_ranks(2,
                      [&](int rank) {
                        const auto& listener = rank == 0 ? accepting.listener(0) : connecting.listener(1);
                        TcpMesh mesh(rank,
                                     connect_ranks(listener, rank, accepting.endpoints, "s",
                                                   steady_clock::now() + milliseconds(5000)),
                                     milliseconds(5000));
                        EXPECT_EQ(mesh.most_links(), 1u);
                        EXPECT_TRUE(exchange(mesh, 1'000'000, 1'000'000));
                      }),
            std::vector<std::string>(2));
  EXPECT_LT(seconds_since(start), 5);
}

}  // namespace
}  // namespace tandem::parallel
#endif
