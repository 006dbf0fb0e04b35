#include "parallel/tcp_group.h"

#include <fmt/format.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/distributed/distributed_impl.h>
#include <mlx/transforms.h>
#include <mlx/utils.h>

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "parallel/reduction.h"
#include "parallel/tcp_handshake.h"
#include "parallel/tcp_mesh.h"

namespace tandem::parallel {
namespace {

namespace mx = mlx::core;

// Memory of a stream's thread, kept between calls: fresh memory would be paged in anew for each.
enum class Scratch { received, narrowed };

char* scratch_of(Scratch purpose, std::size_t bytes) {
  thread_local std::array<std::vector<char>, 2> kept;
  auto& memory = kept[static_cast<std::size_t>(purpose)];
  if (memory.size() < bytes) memory.resize(bytes);
  return memory.data();
}

// The members of a mesh that form a group, or a part of one.
class TcpGroup : public mx::distributed::detail::GroupImpl, public std::enable_shared_from_this<TcpGroup> {
 public:
  // `members`: the mesh's ranks in this group's order. `stripe_window`: TcpOptions::stripe_window_bytes, or 0
  // where no two ranks of the mesh have several links.
  TcpGroup(std::shared_ptr<TcpMesh> mesh, std::vector<int> members, std::uint16_t channel, Wire wire,
           std::size_t stripe_window)
      : mesh_(std::move(mesh)),
        members_(std::move(members)),
        channel_(channel),
        wire_(wire),
        stripe_window_(stripe_window) {
    rank_ = static_cast<int>(std::find(members_.begin(), members_.end(), mesh_->rank()) - members_.begin());
  }

  mx::Stream communication_stream(mx::StreamOrDevice s) override { return mx::to_stream(s, mx::Device::cpu); }
  int rank() override { return rank_; }
  int size() override { return static_cast<int>(members_.size()); }

  std::shared_ptr<GroupImpl> split(int color, int key) override;
  void exchange(std::vector<Transfer> transfers) {
    for (auto& transfer : transfers) transfer.peer = members_[transfer.peer];
    mesh_->exchange(operation(FrameKind::message, mx::uint8), transfers);
  }
  TcpMesh& mesh() const { return *mesh_; }

  void all_sum(const mx::array& input, mx::array& output, mx::Stream stream) override {
    if (wire_ == Wire::bfloat16 && input.dtype() == mx::float32)
      return all_sum_narrowed(input, output, stream);
    all_reduce({FrameKind::all_sum, ReduceOp::sum, input.dtype()}, input, output, stream);
  }
  void all_max(const mx::array& input, mx::array& output, mx::Stream stream) override {
    all_reduce({FrameKind::all_max, ReduceOp::max, input.dtype()}, input, output, stream);
  }
  void all_min(const mx::array& input, mx::array& output, mx::Stream stream) override {
    all_reduce({FrameKind::all_min, ReduceOp::min, input.dtype()}, input, output, stream);
  }
  void all_gather(const mx::array& input, mx::array& output, mx::Stream stream) override;
  void sum_scatter(const mx::array& input, mx::array& output, mx::Stream stream) override;
  void send(const mx::array& input, int dst, mx::Stream stream) override;
  void recv(mx::array& out, int src, mx::Stream stream) override;

 private:
  using Parts = std::vector<std::span<const char>>;  // one a rank

  struct Reduction {
    FrameKind kind;
    ReduceOp op;
    mx::Dtype dtype;
    bool widens = false;  // a sum of bfloat16 comes out as float32

    std::size_t out_size() const { return widens ? sizeof(float) : mx::size_of(dtype); }
  };

  // What a reduction exchanges at once, whole elements of any type: little, which stays in the cache; or, on
  // links that are to end together, so much that the unit they share by is small beside it. The same on all
  // ranks.
  std::size_t slice_bytes() const {
    const std::size_t peers = std::max<std::size_t>(1, members_.size() - 1);
    const std::size_t chunks = stripe_window_ / peers / limits::stripe_chunk_bytes;
    return std::max(limits::reduce_slice_bytes, chunks * limits::stripe_chunk_bytes);
  }

  // One trip of everything to everyone; else two trips of less.
  bool reduces_directly(std::size_t bytes) const {
    return members_.size() == 2 || bytes <= limits::direct_reduce_bytes;
  }

  Operation operation(FrameKind kind, mx::Dtype dtype) const {
    return {kind, static_cast<std::uint8_t>(dtype.val()), channel_};
  }
  template <typename Work>
  void dispatch(const mx::array& input, mx::array& output, mx::Stream stream, Work work);

  void all_reduce(const Reduction& reduction, const mx::array& input, mx::array& output, mx::Stream stream);
  void all_sum_narrowed(const mx::array& input, mx::array& output, mx::Stream stream);
  void reduce_in_parts(const Reduction& reduction, std::span<const char> in, char* out);
  void reduce_scatter(const Reduction& reduction, const Parts& parts, char* out);
  void reduce_slice(const Reduction& reduction, const Parts& parts, char* scratch, char* out);
  void gather(const Operation& operation, std::span<const char> in, char* out);

  std::shared_ptr<TcpMesh> mesh_;
  std::vector<int> members_;
  std::uint16_t channel_;
  Wire wire_;
  std::size_t stripe_window_;
  int splits_ = 0;
  int rank_ = 0;
};

// MLX keeps the buffers alive until the work is done, but not the group.
template <typename Work>
void TcpGroup::dispatch(const mx::array& input, mx::array& output, mx::Stream stream, Work work) {
  auto& encoder = mx::cpu::get_command_encoder(stream);
  encoder.set_input_array(input);
  encoder.set_output_array(output);
  encoder.dispatch([self = shared_from_this(), work = std::move(work)] { work(); });
}

void check_reducible(const mx::array& input) {
  if (input.dtype() == mx::complex64)
    throw std::invalid_argument("a complex array cannot be reduced over ranks");
}

// MLX gives inputs that are contiguous and outputs that have their memory; all_reduce's may be one buffer.
std::span<const char> bytes_of(const mx::array& input) { return {input.data<char>(), input.nbytes()}; }

void TcpGroup::all_reduce(const Reduction& reduction, const mx::array& input, mx::array& output,
                          mx::Stream stream) {
  check_reducible(input);
  dispatch(input, output, stream, [this, reduction, in = bytes_of(input), out = output.data<char>()] {
    if (reduces_directly(in.size())) {
      reduce_scatter(reduction, Parts(members_.size(), in), out);
    } else {
      reduce_in_parts(reduction, in, out);
    }
  });
}

void TcpGroup::all_sum_narrowed(const mx::array& input, mx::array& output, mx::Stream stream) {
  dispatch(input, output, stream,
           [this, in = input.data<float>(), count = input.size(), out = output.data<float>()] {
             const std::size_t bytes = count * mx::size_of(mx::bfloat16);
             char* narrowed = scratch_of(Scratch::narrowed, bytes);
             narrow_to_bfloat16(in, narrowed, count);
             Reduction reduction{FrameKind::all_sum, ReduceOp::sum, mx::bfloat16, /*widens=*/true};
             if (reduces_directly(bytes)) {
               return reduce_scatter(reduction, Parts(members_.size(), {narrowed, bytes}),
                                     reinterpret_cast<char*>(out));
             }
             // The sums of parts travel as well, so they are rounded too.
             reduction.widens = false;
             reduce_in_parts(reduction, {narrowed, bytes}, narrowed);
             widen_bfloat16(narrowed, out, count);
           });
}

void TcpGroup::all_gather(const mx::array& input, mx::array& output, mx::Stream stream) {
  dispatch(input, output, stream,
           [this, operation = operation(FrameKind::all_gather, input.dtype()), in = bytes_of(input),
            out = output.data<char>()] { gather(operation, in, out); });
}

void TcpGroup::sum_scatter(const mx::array& input, mx::array& output, mx::Stream stream) {
  check_reducible(input);
  dispatch(input, output, stream,
           [this, reduction = Reduction{FrameKind::sum_scatter, ReduceOp::sum, input.dtype()},
            in = bytes_of(input), part_bytes = output.nbytes(), out = output.data<char>()] {
             Parts parts;
             for (std::size_t i = 0; i < members_.size(); ++i)
               parts.push_back(in.subspan(i * part_bytes, part_bytes));
             reduce_scatter(reduction, parts, out);
           });
}

void TcpGroup::send(const mx::array& input, int dst, mx::Stream stream) {
  mx::array same = input;
  dispatch(input, same, stream,
           [this, operation = operation(FrameKind::message, input.dtype()),
            transfer = Transfer{members_[dst], bytes_of(input), std::nullopt}] {
             mesh_->exchange(operation, {&transfer, 1});
           });
}

void TcpGroup::recv(mx::array& out, int src, mx::Stream stream) {
  dispatch(out, out, stream,
           [this, operation = operation(FrameKind::message, out.dtype()),
            transfer = Transfer{members_[src], std::nullopt, std::span(out.data<char>(), out.nbytes())}] {
             mesh_->exchange(operation, {&transfer, 1});
           });
}

// Each rank reduces its part of the elements and sends it to all. `out` may be `in`: a part is written when
// it has been sent.
void TcpGroup::reduce_in_parts(const Reduction& reduction, std::span<const char> in, char* out) {
  const std::size_t element = mx::size_of(reduction.dtype), count = in.size() / element,
                    ranks = members_.size();
  const auto bound = [&](std::size_t rank) { return count * rank / ranks * element; };
  Parts parts;
  for (std::size_t i = 0; i < ranks; ++i) parts.push_back(in.subspan(bound(i), bound(i + 1) - bound(i)));
  const std::span own(out + bound(rank_), parts[rank_].size());
  reduce_scatter(reduction, parts, own.data());
  std::vector<Transfer> transfers;
  for (std::size_t i = 0; i < ranks; ++i) {
    if (static_cast<int>(i) != rank_)
      transfers.push_back({members_[i], own, std::span(out + bound(i), parts[i].size())});
  }
  mesh_->exchange(operation(reduction.kind, reduction.dtype), transfers);
}

// Sends parts[i] to rank i, and reduces what all have for this rank into `out`, slice by slice.
void TcpGroup::reduce_scatter(const Reduction& reduction, const Parts& parts, char* out) {
  std::size_t longest = 0;
  for (const auto& part : parts) longest = std::max(longest, part.size());
  const std::size_t slice = std::min(longest, slice_bytes());
  char* scratch = scratch_of(Scratch::received, (members_.size() - 1) * slice);
  std::size_t done = 0;
  do {
    Parts slices;
    for (const auto& part : parts) {
      const std::size_t first = std::min(done, part.size());
      slices.push_back(part.subspan(first, std::min(slice, part.size() - first)));
    }
    reduce_slice(reduction, slices, scratch,
                 out + done / mx::size_of(reduction.dtype) * reduction.out_size());
    done += slice;
  } while (done < longest);
}

void TcpGroup::reduce_slice(const Reduction& reduction, const Parts& parts, char* scratch, char* out) {
  const std::size_t bytes = parts[rank_].size();
  std::vector<const char*> sources(members_.size(), parts[rank_].data());
  std::vector<Transfer> transfers;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (static_cast<int>(i) == rank_) continue;
    transfers.push_back({members_[i], parts[i], std::span(scratch, bytes)});
    sources[i] = scratch;
    scratch += bytes;
  }
  const std::size_t element = mx::size_of(reduction.dtype);
  std::size_t done = 0;
  const auto reduce_until = [&](std::size_t end) {
    const std::size_t count = (end - done) / element;
    if (reduction.widens) {
      sum_bfloat16(sources, reinterpret_cast<float*>(out), count);
    } else {
      reduce(reduction.op, reduction.dtype, sources, out, count);
    }
    for (auto& source : sources) source += count * element;
    out += count * reduction.out_size();
    done += count * element;
  };
  mesh_->exchange(operation(reduction.kind, reduction.dtype), transfers,
                  [&](std::size_t moved) { reduce_until(std::min(moved, bytes)); });
  reduce_until(bytes);
}

// Puts every rank's bytes into `out` in order of rank.
void TcpGroup::gather(const Operation& operation, std::span<const char> in, char* out) {
  std::vector<Transfer> transfers;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (static_cast<int>(i) != rank_)
      transfers.push_back({members_[i], in, std::span(out + i * in.size(), in.size())});
  }
  mesh_->exchange(operation, transfers);
  std::copy(in.begin(), in.end(), out + static_cast<std::size_t>(rank_) * in.size());
}

std::shared_ptr<mx::distributed::detail::GroupImpl> TcpGroup::split(int color, int key) {
  // Channel numbers form a tree; groups of one split have no member in common, so that they may share one.
  const long channel = static_cast<long>(channel_) * limits::splits_of_a_group + ++splits_;
  if (splits_ > limits::splits_of_a_group || channel > std::numeric_limits<std::uint16_t>::max()) {
    throw std::invalid_argument(fmt::format("a group can be split {} times", limits::splits_of_a_group));
  }
  mesh_->check();
  mx::synchronize(mx::default_stream(mx::Device::cpu));  // what was enqueued before goes first
  const std::array<int, 2> own{color, key < 0 ? rank_ : key};
  std::vector<std::array<int, 2>> all(members_.size());
  gather(operation(FrameKind::split, mx::int32), {reinterpret_cast<const char*>(own.data()), sizeof(own)},
         reinterpret_cast<char*>(all.data()));
  std::vector<std::pair<int, int>> chosen;  // key, index
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i][0] == color) chosen.emplace_back(all[i][1], static_cast<int>(i));
  }
  std::sort(chosen.begin(), chosen.end());
  std::vector<int> members;
  for (const auto& [order, index] : chosen) members.push_back(members_[index]);
  return std::make_shared<TcpGroup>(mesh_, std::move(members), static_cast<std::uint16_t>(channel), wire_,
                                    stripe_window_);
}

// Asks every rank of the mesh.
bool any_has_several_links(TcpMesh& mesh) {
  const char own = mesh.most_links() > 1;
  std::vector<char> all(mesh.size(), own);
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < mesh.size(); ++peer) {
    if (peer != mesh.rank()) transfers.push_back({peer, std::span(&own, 1), std::span(&all[peer], 1)});
  }
  mesh.exchange({FrameKind::join}, transfers);
  return std::find(all.begin(), all.end(), 1) != all.end();
}

}  // namespace

mx::distributed::Group join_tcp_group(const TcpListener& listener, int rank,
                                      const std::vector<Endpoint>& endpoints, const std::string& secret,
                                      const TcpOptions& options) {
  const Deadline deadline = std::chrono::steady_clock::now() + options.connect;
  auto mesh = std::make_shared<TcpMesh>(rank, connect_ranks(listener, rank, endpoints, secret, deadline),
                                        options.collective);
  std::vector<int> members(endpoints.size());
  std::iota(members.begin(), members.end(), 0);
  const std::size_t stripe_window = any_has_several_links(*mesh) ? options.stripe_window_bytes : 0;
  return mx::distributed::Group(
      std::make_shared<TcpGroup>(std::move(mesh), std::move(members), 0, options.wire, stripe_window));
}

namespace {

// nullptr for a group of one of MLX's own backends.
TcpMesh* mesh_of(const mx::distributed::Group& group) {
  const auto* ours = dynamic_cast<const TcpGroup*>(group.raw_group().get());
  return ours ? &ours->mesh() : nullptr;
}

}  // namespace

void exchange(const mx::distributed::Group& group, std::vector<Transfer> transfers) {
  auto* ours = dynamic_cast<TcpGroup*>(group.raw_group().get());
  if (!ours) throw std::logic_error("messages between ranks need a tcp group");
  ours->exchange(std::move(transfers));
}

void check(const mx::distributed::Group& group) {
  if (const auto* mesh = mesh_of(group)) mesh->check();
}

void set_timeout(const mx::distributed::Group& group, std::chrono::milliseconds timeout) {
  if (auto* mesh = mesh_of(group)) mesh->set_timeout(timeout);
}

LinkUse link_use(const mx::distributed::Group& group) {
  auto* mesh = mesh_of(group);
  return mesh ? mesh->use() : LinkUse{};
}

mx::distributed::Group single_rank_group() {
  auto mesh = std::make_shared<TcpMesh>(0, std::vector<std::vector<TcpSocket>>(1), limits::collective);
  return mx::distributed::Group(
      std::make_shared<TcpGroup>(std::move(mesh), std::vector<int>{0}, 0, Wire::float32, 0));
}

}  // namespace tandem::parallel
