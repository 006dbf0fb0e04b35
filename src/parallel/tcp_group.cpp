#include "parallel/tcp_group.h"

#include <fmt/format.h>
#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/distributed/distributed_impl.h>
#include <mlx/utils.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "base/limits.h"
#include "parallel/reduction.h"
#include "parallel/tcp_mesh.h"

namespace tandem::parallel {
namespace {

namespace mx = mlx::core;

// The members of a mesh that form a group, or a part of one.
class TcpGroup : public mx::distributed::detail::GroupImpl {
 public:
  // `members`: the mesh's ranks in this group's order.
  TcpGroup(std::shared_ptr<TcpMesh> mesh, std::vector<int> members, std::uint16_t channel)
      : mesh_(std::move(mesh)), members_(std::move(members)), channel_(channel) {
    rank_ = static_cast<int>(std::find(members_.begin(), members_.end(), mesh_->rank()) - members_.begin());
  }

  mx::Stream communication_stream(mx::StreamOrDevice s) override { return mx::to_stream(s, mx::Device::cpu); }
  int rank() override { return rank_; }
  int size() override { return static_cast<int>(members_.size()); }

  std::shared_ptr<GroupImpl> split(int color, int key) override;

  void all_sum(const mx::array& input, mx::array& output, mx::Stream stream) override {
    all_reduce(ReduceOp::sum, input, output, stream);
  }
  void all_max(const mx::array& input, mx::array& output, mx::Stream stream) override {
    all_reduce(ReduceOp::max, input, output, stream);
  }
  void all_min(const mx::array& input, mx::array& output, mx::Stream stream) override {
    all_reduce(ReduceOp::min, input, output, stream);
  }

  void all_gather(const mx::array& input, mx::array& output, mx::Stream stream) override {
    dispatch(input, output, stream,
             [this, in = input.data<char>(), bytes = input.nbytes(), out = output.data<char>()] {
               gather(FrameKind::all_gather, in, bytes, out);
             });
  }

  void sum_scatter(const mx::array& input, mx::array& output, mx::Stream stream) override {
    dispatch(input, output, stream,
             [this, in = input.data<char>(), count = output.size(), dtype = input.dtype(),
              out = output.data<char>()] {
               const std::size_t bytes = count * mx::size_of(dtype);
               reduce_scatter(FrameKind::sum_scatter, ReduceOp::sum, dtype, even_parts(in, bytes), out);
             });
  }

  void send(const mx::array& input, int dst, mx::Stream stream) override {
    mx::array same = input;
    dispatch(input, same, stream, [this, in = input.data<char>(), bytes = input.nbytes(), dst] {
      const Transfer transfer{members_[dst], {in, bytes}, {}};
      mesh_->exchange(FrameKind::message, channel_, {&transfer, 1});
    });
  }

  void recv(mx::array& out, int src, mx::Stream stream) override {
    dispatch(out, out, stream, [this, target = out.data<char>(), bytes = out.nbytes(), src] {
      const Transfer transfer{members_[src], {}, {target, bytes}};
      mesh_->exchange(FrameKind::message, channel_, {&transfer, 1});
    });
  }

 private:
  using Parts = std::vector<std::span<const char>>;  // one a rank

  template <typename Work>
  static void dispatch(const mx::array& input, mx::array& output, mx::Stream stream, Work work) {
    auto& encoder = mx::cpu::get_command_encoder(stream);
    encoder.set_input_array(input);
    encoder.set_output_array(output);
    encoder.dispatch(std::move(work));
  }

  Parts even_parts(const char* data, std::size_t bytes) const {
    Parts parts;
    for (std::size_t i = 0; i < members_.size(); ++i) parts.emplace_back(data + i * bytes, bytes);
    return parts;
  }

  void all_reduce(ReduceOp op, const mx::array& input, mx::array& output, mx::Stream stream);
  void reduce_direct(ReduceOp op, mx::Dtype dtype, std::span<const char> in, char* out);
  void reduce_in_parts(ReduceOp op, mx::Dtype dtype, std::span<const char> in, char* out);
  void reduce_scatter(FrameKind kind, ReduceOp op, mx::Dtype dtype, const Parts& parts, char* out);
  void gather(FrameKind kind, const char* in, std::size_t bytes, char* out);

  std::shared_ptr<TcpMesh> mesh_;
  std::vector<int> members_;
  std::uint16_t channel_;
  std::uint16_t splits_ = 0;
  int rank_;
};

void TcpGroup::all_reduce(ReduceOp op, const mx::array& input, mx::array& output, mx::Stream stream) {
  if (input.dtype() == mx::complex64)
    throw std::invalid_argument("a complex array cannot be reduced over ranks");
  // `output` may be `input`'s own buffer.
  dispatch(input, output, stream,
           [this, op, dtype = input.dtype(), in = std::span(input.data<char>(), input.nbytes()),
            out = output.data<char>()] {
             if (size() == 2 || in.size() <= limits::direct_reduce_bytes) {
               reduce_direct(op, dtype, in, out);
             } else {
               reduce_in_parts(op, dtype, in, out);
             }
           });
}

// Everyone sends everything to everyone: one trip.
void TcpGroup::reduce_direct(ReduceOp op, mx::Dtype dtype, std::span<const char> in, char* out) {
  reduce_scatter(FrameKind::all_reduce, op, dtype, Parts(members_.size(), in), out);
}

// Each rank reduces its part of the elements and sends it to all: two trips, less to send.
void TcpGroup::reduce_in_parts(ReduceOp op, mx::Dtype dtype, std::span<const char> in, char* out) {
  const std::size_t element = mx::size_of(dtype), count = in.size() / element, ranks = members_.size();
  std::vector<std::size_t> bounds;
  for (std::size_t i = 0; i <= ranks; ++i) bounds.push_back(count * i / ranks * element);
  Parts parts;
  for (std::size_t i = 0; i < ranks; ++i) parts.push_back(in.subspan(bounds[i], bounds[i + 1] - bounds[i]));
  const std::size_t own_bytes = parts[rank_].size();
  std::vector<char> own(own_bytes);
  reduce_scatter(FrameKind::all_reduce, op, dtype, parts, own.data());
  std::vector<Transfer> transfers;
  for (std::size_t i = 0; i < ranks; ++i) {
    if (static_cast<int>(i) != rank_)
      transfers.push_back({members_[i], own, {out + bounds[i], parts[i].size()}});
  }
  mesh_->exchange(FrameKind::all_reduce, channel_, transfers);
  std::memcpy(out + bounds[rank_], own.data(), own_bytes);
}

// Sends parts[i] to rank i, and reduces what all have for this rank into `out`.
void TcpGroup::reduce_scatter(FrameKind kind, ReduceOp op, mx::Dtype dtype, const Parts& parts, char* out) {
  const std::size_t bytes = parts[rank_].size(), ranks = members_.size();
  std::vector<char> received((ranks - 1) * bytes);
  std::vector<const char*> sources(ranks, parts[rank_].data());
  std::vector<Transfer> transfers;
  char* target = received.data();
  for (std::size_t i = 0; i < ranks; ++i) {
    if (static_cast<int>(i) == rank_) continue;
    transfers.push_back({members_[i], parts[i], {target, bytes}});
    sources[i] = target;
    target += bytes;
  }
  mesh_->exchange(kind, channel_, transfers);
  reduce(op, dtype, sources, out, bytes / mx::size_of(dtype));
}

// Puts every rank's `bytes` into `out` in order of rank.
void TcpGroup::gather(FrameKind kind, const char* in, std::size_t bytes, char* out) {
  std::vector<Transfer> transfers;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (static_cast<int>(i) != rank_)
      transfers.push_back({members_[i], {in, bytes}, {out + i * bytes, bytes}});
  }
  mesh_->exchange(kind, channel_, transfers);
  std::memcpy(out + static_cast<std::size_t>(rank_) * bytes, in, bytes);
}

std::shared_ptr<mx::distributed::detail::GroupImpl> TcpGroup::split(int color, int key) {
  const std::array<int, 2> own{color, key < 0 ? rank_ : key};
  std::vector<std::array<int, 2>> all(members_.size());
  gather(FrameKind::split, reinterpret_cast<const char*>(own.data()), sizeof(own),
         reinterpret_cast<char*>(all.data()));
  std::vector<std::pair<int, int>> chosen;  // key, index
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i][0] == color) chosen.emplace_back(all[i][1], static_cast<int>(i));
  }
  std::sort(chosen.begin(), chosen.end());
  std::vector<int> members;
  for (const auto& [order, index] : chosen) members.push_back(members_[index]);
  // Groups of one split have no member in common, so that they may share a channel.
  const auto channel = static_cast<std::uint16_t>(channel_ * limits::splits_of_a_group + ++splits_);
  return std::make_shared<TcpGroup>(mesh_, std::move(members), channel);
}

}  // namespace

mx::distributed::Group join_tcp_group(const TcpListener& listener, int rank,
                                      const std::vector<Endpoint>& endpoints, const std::string& secret,
                                      std::chrono::milliseconds timeout) {
  std::vector<int> members(endpoints.size());
  for (std::size_t i = 0; i < members.size(); ++i) members[i] = static_cast<int>(i);
  auto mesh = std::make_shared<TcpMesh>(listener, rank, endpoints, secret, timeout);
  return mx::distributed::Group(std::make_shared<TcpGroup>(std::move(mesh), std::move(members), 0));
}

mx::distributed::Group single_rank_group() {
  const TcpListener listener(/*loopback_only=*/true);
  return join_tcp_group(listener, 0, {listener.endpoint()}, "");
}

}  // namespace tandem::parallel
