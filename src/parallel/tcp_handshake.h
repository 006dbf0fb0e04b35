// How two ranks meet: the connecting side says who it is, both prove the group's secret, the accepting side
// agrees.
//
//   connecting → accepting   "TANDEM01", rank (u32 LE), nonce (32 bytes)
//   accepting → connecting   nonce (32), proof (32)
//   connecting → accepting   proof (32)
//   accepting → connecting   one byte, 1
//
// A proof is HMAC-SHA256(secret, role ‖ nonce of the connecting ‖ nonce of the accepting ‖ both ranks).
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "parallel/tcp_group.h"

namespace tandem::parallel {

using Deadline = std::chrono::steady_clock::time_point;

// A proved connection (a non-blocking descriptor) to `peer`, by the first of its addresses that answers
// rightly. ClusterError where none does before the deadline.
int connect_to_peer(const Endpoint& endpoint, int rank, int peer, const std::string& secret,
                    Deadline deadline);

// Proved connections of every rank above `rank`, at index peer; -1 elsewhere. Strangers are dropped after
// limits::handshake and delay nobody. ClusterError names the ranks that have not come by the deadline.
std::vector<int> accept_peers(const TcpListener& listener, int rank, int world, const std::string& secret,
                              Deadline deadline);

}  // namespace tandem::parallel
