// How two ranks meet: the connecting side says who it is, both prove the group's secret, the accepting side
// agrees.
//
//   connecting → accepting   "TANDEM01", rank (u32 LE), nonce (32 bytes)
//   accepting → connecting   nonce (32), proof (32)
//   connecting → accepting   proof (32)
//   accepting → connecting   one byte, 1
//
// A proof is HMAC-SHA256(secret, role ‖ nonce of the connecting ‖ nonce of the accepting ‖ both ranks), the
// role 'C' of the connecting or 'A' of the accepting side (RFC 2104, FIPS 180-4).
#pragma once

#include <string>
#include <vector>

#include "parallel/tcp_group.h"
#include "parallel/tcp_socket.h"

namespace tandem::parallel {

// The proved connections of `rank` to every other, at the index of the peer. Connects to every rank below, at
// the first of its addresses that answers rightly, then accepts every rank above; strangers are dropped after
// limits::handshake and delay nobody. ClusterError names the ranks that are missing at the deadline.
std::vector<TcpSocket> connect_ranks(const TcpListener& listener, int rank,
                                     const std::vector<Endpoint>& endpoints, const std::string& secret,
                                     Deadline deadline);

}  // namespace tandem::parallel
