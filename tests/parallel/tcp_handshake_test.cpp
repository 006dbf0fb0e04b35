#include "parallel/tcp_handshake.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <ctime>

#include "base/error.h"
#include "parallel/ranks.h"

namespace tandem::parallel {
namespace {

std::string join_error(const MeetingPoint& meeting, int rank, const std::string& secret,
                       milliseconds timeout) {
  try {
    connect_ranks(meeting.listener(rank), rank, meeting.endpoints, secret, steady_clock::now() + timeout);
    return "";
  } catch (const ClusterError& error) {
    return error.what();
  }
}

// A connection from outside the group.
TcpSocket stranger(const Endpoint& endpoint) {
  const int descriptor = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(endpoint.port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  return TcpSocket(descriptor);
}

// The protocol as the header tells it, written a second time.
std::string hello(std::uint32_t rank, const std::string& nonce, std::uint32_t link = 0) {
  return "TANDEM02" + std::string(reinterpret_cast<const char*>(&rank), 4) +
         std::string(reinterpret_cast<const char*>(&link), 4) + nonce;
}

std::string proof(const std::string& secret, char role, const std::string& connecting,
                  const std::string& accepting, std::uint32_t connecting_rank, std::uint32_t accepting_rank,
                  std::uint32_t link = 0) {
  std::string message = role + connecting + accepting;
  message.append(reinterpret_cast<const char*>(&connecting_rank), 4);
  message.append(reinterpret_cast<const char*>(&accepting_rank), 4);
  message.append(reinterpret_cast<const char*>(&link), 4);
  std::array<unsigned char, 32> out{};
  HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
       reinterpret_cast<const unsigned char*>(message.data()), message.size(), out.data(), nullptr);
  return {out.begin(), out.end()};
}

Deadline soon() { return steady_clock::now() + milliseconds(1500); }

// Says hello as `rank` and then make_proof(accepting nonce, accepting proof); whether it was let in.
template <typename MakeProof>
bool let_in(const TcpSocket& socket, int rank, MakeProof make_proof, int link = 0) {
  const std::string nonce(32, 'n'), greeting = hello(rank, nonce, link);
  std::array<char, 64> challenge{};
  if (!socket.send_all(greeting.data(), greeting.size()) ||
      !receive_all(socket, challenge.data(), challenge.size(), soon())) {
    return false;
  }
  const std::string own =
      make_proof(nonce, std::string(challenge.data(), 32), std::string(challenge.data() + 32, 32));
  char answer = 0;
  return socket.send_all(own.data(), own.size()) && receive_all(socket, &answer, 1, soon()) && answer == 1;
}

TEST(TcpHandshake, WithoutAFreeDescriptorItWaitsAtRest) {
  const MeetingPoint meeting(2);
  const auto waiting = stranger(meeting.endpoints[0]);
  const int free = ::dup(STDIN_FILENO);
  ::close(free);
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  const rlimit none{static_cast<rlim_t>(free), before.rlim_max};
  ::setrlimit(RLIMIT_NOFILE, &none);
  const auto start = std::clock();
  const auto error = join_error(meeting, 0, "secret", milliseconds(600));
  const double busy_s = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  ::setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_EQ(error, "rank 1 did not connect in time");
  EXPECT_LT(busy_s, 0.2);
}

TEST(TcpHandshake, JoinsWhileStrangersBotherTheListener) {
  const MeetingPoint meeting(2);
  std::vector<TcpSocket> strangers;
  const auto say = [&](const std::string& bytes) {
    strangers.push_back(stranger(meeting.endpoints[0]));
    strangers.back().send_all(bytes.data(), bytes.size());
  };
  std::atomic<bool> joined{false};
  const auto start = steady_clock::now();
  const auto errors = run_ranks(3, [&](int rank) {
    if (rank == 2) {  // a slow one, a byte at a time
      const auto slow = stranger(meeting.endpoints[0]);
      const std::string greeting = hello(1, std::string(32, 'x'));
      for (std::size_t i = 0; i < greeting.size() && !joined; ++i) {
        slow.send_all(&greeting[i], 1);
        std::this_thread::sleep_for(milliseconds(20));
      }
      return;
    }
    if (rank == 1) {
      for (int i = 0; i < 20; ++i) say("");
      for (int i = 0; i < 50; ++i) stranger(meeting.endpoints[0]);
      say("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
      say(std::string(10'000, '\xff'));
      say(hello(0, std::string(32, 'x')));             // a rank that does not connect here
      say(hello(2, std::string(32, 'x')));             // no rank
      say(hello(0xffffffff, std::string(32, 'x')));    // no rank
      say(hello(1, std::string(32, 'x')));             // a rank, and then nothing
      say(hello(1, std::string(64, 'x')));             // a rank, and then no proof
      std::this_thread::sleep_for(milliseconds(200));  // they are all heard
    }
    auto mesh = meeting.mesh(rank);
    joined = true;
    char byte = static_cast<char>(rank), other = 9;
    const Transfer transfer{1 - rank, std::span(&byte, 1), std::span(&other, 1)};
    mesh.exchange({FrameKind::all_gather}, {&transfer, 1});
    EXPECT_EQ(other, 1 - rank);
  });
  EXPECT_EQ(errors, std::vector<std::string>(3));
  EXPECT_LT(seconds_since(start), 3);
}

TEST(TcpHandshake, JoinsInAnyOrderOfArrival) {
  const MeetingPoint meeting(4);
  const auto errors = run_ranks(4, [&](int rank) {
    std::this_thread::sleep_for(milliseconds(60 * (3 - rank)));
    meeting.mesh(rank);
  });
  EXPECT_EQ(errors, std::vector<std::string>(4));
}

TEST(TcpHandshake, AWrongSecretIsSaid) {
  const MeetingPoint meeting(2);
  std::vector<std::string> messages(2);
  const auto errors = run_ranks(2, [&](int rank) {
    messages[rank] =
        join_error(meeting, rank, rank == 0 ? "right" : "wrong", milliseconds(rank == 0 ? 500 : 300));
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
  EXPECT_EQ(messages[0], "rank 1 did not connect in time");
  EXPECT_EQ(messages[1].find("cannot reach rank 0 on port"), 0u) << messages[1];
  EXPECT_NE(messages[1].find("127.0.0.1 (it does not prove the group's secret)"), std::string::npos)
      << messages[1];
}

TEST(TcpHandshake, MissingRanksAreNamed) {
  const MeetingPoint meeting(4);
  std::vector<std::string> messages(4);
  const auto errors =
      run_ranks(2, [&](int rank) { messages[rank] = join_error(meeting, rank, "s", milliseconds(300)); });
  EXPECT_EQ(errors, std::vector<std::string>(2));
  EXPECT_EQ(messages[0], "rank 2, rank 3 did not connect in time");
  EXPECT_EQ(messages[1], "rank 2, rank 3 did not connect in time");
}

TEST(TcpHandshake, AClosedPortIsNamed) {
  MeetingPoint meeting(2);
  meeting.endpoints[0] = TcpListener(/*loopback_only=*/true).endpoint();  // closed again
  const std::string message = join_error(meeting, 1, "s", milliseconds(100));
  EXPECT_EQ(message, "cannot reach rank 0 on port " + std::to_string(meeting.endpoints[0].port) +
                         " at 127.0.0.1 (Connection refused): is a firewall in the way?");
}

TEST(TcpHandshake, TriesTheNextAddress) {
  MeetingPoint meeting(2);
  meeting.endpoints[0].addresses = {"no address", "127.0.0.1"};
  EXPECT_EQ(run_ranks(2, [&](int rank) { meeting.mesh(rank); }), std::vector<std::string>(2));
}

#if defined(__linux__)  // elsewhere 127.0.0.2 is nobody's
TEST(TcpHandshake, LeavesASilentServerForTheNextAddress) {
  MeetingPoint meeting(2);
  const TcpSocket silent(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(meeting.endpoints[0].port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);
  ASSERT_EQ(::bind(silent.descriptor(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(silent.descriptor(), 5), 0);
  meeting.endpoints[0].addresses = {"127.0.0.2", "127.0.0.1"};
  const auto start = steady_clock::now();
  EXPECT_EQ(run_ranks(2, [&](int rank) { meeting.mesh(rank); }), std::vector<std::string>(2));
  EXPECT_LT(seconds_since(start), 2.5);
}
#endif

// Rank 0 of three waits; a client from outside plays rank 1.
TEST(TcpHandshake, LetsInWhoProvesTheSecretOnce) {
  const MeetingPoint meeting(3);
  std::thread rank_0([&] {
    EXPECT_EQ(join_error(meeting, 0, "secret", milliseconds(800)), "rank 2 did not connect in time");
  });
  const auto& endpoint = meeting.endpoints[0];
  const auto prove = [](const char* secret, char role, int connecting_rank, int link = 0) {
    return [=](const std::string& own, const std::string& accepting, const std::string&) {
      return proof(secret, role, own, accepting, connecting_rank, 0, link);
    };
  };
  const auto reflect = [](const std::string&, const std::string&, const std::string& theirs) {
    return theirs;
  };
  EXPECT_FALSE(let_in(stranger(endpoint), 1, prove("other", 'C', 1))) << "wrong secret";
  EXPECT_FALSE(let_in(stranger(endpoint), 1, prove("secret", 'A', 1))) << "wrong role";
  EXPECT_FALSE(let_in(stranger(endpoint), 1, prove("secret", 'C', 2))) << "the proof of another rank";
  EXPECT_FALSE(let_in(stranger(endpoint), 1, reflect)) << "its own proof sent back";
  const auto prove_rank_3 = [](const std::string& own, const std::string& accepting, const std::string&) {
    return proof("secret", 'C', own, accepting, 3, 0);
  };
  EXPECT_FALSE(let_in(stranger(endpoint), 3, prove_rank_3)) << "no rank of this group";
  const auto first = stranger(endpoint);
  EXPECT_FALSE(let_in(stranger(endpoint), 1, prove("secret", 'C', 1, 1), 1)) << "a link before the first";
  EXPECT_TRUE(let_in(first, 1, prove("secret", 'C', 1)));
  EXPECT_FALSE(let_in(stranger(endpoint), 1, prove("secret", 'C', 1), 1)) << "the proof of another link";
  EXPECT_FALSE(let_in(stranger(endpoint), 1, prove("secret", 'C', 1, 8), 8))
      << "more links than there may be";
  const auto second = stranger(endpoint);
  EXPECT_TRUE(let_in(second, 1, prove("secret", 'C', 1, 1), 1));
  const char first_alone = 1;
  EXPECT_TRUE(first.send_all(&first_alone, 1));
  char byte = 0;
  EXPECT_FALSE(receive_all(second, &byte, 1, soon())) << "it does not count, so it is closed";
  EXPECT_FALSE(let_in(stranger(endpoint), 1, prove("secret", 'C', 1, 2), 2)) << "a link that comes too late";
  EXPECT_FALSE(let_in(stranger(endpoint), 1, prove("secret", 'C', 1))) << "a second of the same rank";
  rank_0.join();
}

// A server that says yes to everything but does not know the secret.
TEST(TcpHandshake, LeavesAServerThatDoesNotProveTheSecret) {
  const MeetingPoint meeting(2);
  std::atomic<bool> done{false};
  std::thread rogue([&] {
    while (!done) {
      pollfd polled{meeting.listener(0).descriptor(), POLLIN, 0};
      if (::poll(&polled, 1, 20) <= 0) continue;
      const TcpSocket socket(::accept(meeting.listener(0).descriptor(), nullptr, nullptr));
      std::array<char, 64> bytes{};
      if (!receive_all(socket, bytes.data(), 48, soon())) continue;
      socket.send_all(bytes.data(), 64);
      const char yes = 1;
      if (receive_all(socket, bytes.data(), 32, soon())) socket.send_all(&yes, 1);
    }
  });
  const std::string message = join_error(meeting, 1, "secret", milliseconds(200));
  done = true;
  rogue.join();
  EXPECT_NE(message.find("127.0.0.1 (it does not prove the group's secret)"), std::string::npos) << message;
}

TEST(TcpListener, GivesAddressesThatCanBeReached) {
  const TcpListener loopback(/*loopback_only=*/true);
  EXPECT_EQ(loopback.endpoint().addresses, std::vector<std::string>{"127.0.0.1"});
  MeetingPoint meeting(2);
  const TcpListener everywhere(/*loopback_only=*/false);
  ASSERT_FALSE(everywhere.endpoint().addresses.empty());
  for (const auto& address : everywhere.endpoint().addresses) {
    meeting.endpoints[0] = {{address}, everywhere.endpoint().port};
    const auto errors = run_ranks(2, [&](int rank) {
      const auto& listener = rank == 0 ? everywhere : meeting.listener(1);
      connect_ranks(listener, rank, meeting.endpoints, "s", steady_clock::now() + milliseconds(2000));
    });
    EXPECT_EQ(errors, std::vector<std::string>(2)) << address;
  }
}

}  // namespace
}  // namespace tandem::parallel
