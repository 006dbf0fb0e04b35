// How two ranks meet: the connecting side says who it is, both prove the group's secret, the accepting side
// agrees.
//
//   connecting → accepting   "TANDEM02", rank (u32 LE), link (u32 LE), nonce (32 bytes)
//   accepting → connecting   nonce (32), proof (32)
//   connecting → accepting   proof (32)
//   accepting → connecting   one byte, 1
//
// A proof is HMAC-SHA256(secret, role ‖ nonce of the connecting ‖ nonce of the accepting ‖ both ranks ‖
// link), the role 'C' of the connecting or 'A' of the accepting side (RFC 2104, FIPS 180-4).
//
// Link 0 is the first of the peer's addresses that answers rightly. Once it stands, the connecting side tries
// further links (parallel/tcp_links.h), all at the same time and for limits::further_links at most, and then
// says on link 0 which links count: one byte, bit i for link i. Whatever else arrived is dropped.
#pragma once

#include <string>
#include <vector>

#include "parallel/tcp_group.h"
#include "parallel/tcp_socket.h"

namespace tandem::parallel {

// The proved connections of `rank` to every other, at the index of the peer, in order of link. Connects to
// every rank below and accepts every rank above; strangers are dropped after limits::handshake and delay
// nobody, nor does a further link that fails. ClusterError names the ranks that are missing at the deadline.
std::vector<std::vector<TcpSocket>> connect_ranks(const TcpListener& listener, int rank,
                                                  const std::vector<Endpoint>& endpoints,
                                                  const std::string& secret, Deadline deadline);

}  // namespace tandem::parallel
