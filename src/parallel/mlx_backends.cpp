#include "parallel/mlx_backends.h"

#include <fmt/format.h>
#include <mlx/device.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace tandem::parallel {
namespace {

namespace mx = mlx::core;
namespace fs = std::filesystem;

void set(const char* name, const std::string& value) { ::setenv(name, value.c_str(), /*overwrite=*/1); }

std::string first_address(const Endpoint& endpoint) {
  const std::string& address = endpoint.addresses.front();
  const bool is_ipv6 = address.find(':') != std::string::npos;
  return is_ipv6 ? fmt::format("[{}]:{}", address, endpoint.port)
                 : fmt::format("{}:{}", address, endpoint.port);
}

// A new, empty file of this user alone.
std::string make_temporary_file() {
  std::error_code error;
  const fs::path folder = fs::temp_directory_path(error);
  if (error) {
    throw InputError(fmt::format(
        "--backend ring: there is no folder for temporary files: {}; set TMPDIR to one", error.message()));
  }
  std::string path = folder / "tandem-ring-XXXXXX";
  const int descriptor = ::mkstemp(path.data());
  if (descriptor < 0) {
    throw InputError(
        fmt::format("--backend ring: cannot make {}: {}; set TMPDIR to a folder that takes files", path,
                    std::strerror(errno)));
  }
  ::close(descriptor);
  return path;
}

// The file that MLX's ring reads: every rank's address.
class HostFile {
 public:
  explicit HostFile(const std::vector<Endpoint>& endpoints) : path_(make_temporary_file()) {
    nlohmann::json hosts = nlohmann::json::array();
    for (const auto& endpoint : endpoints) hosts.push_back({first_address(endpoint)});
    std::ofstream file(path_);
    file << hosts << std::flush;
    if (file) return;
    remove();
    throw InputError(fmt::format("--backend ring: cannot write {}: is the disk full?", path_));
  }
  ~HostFile() { remove(); }
  HostFile(const HostFile&) = delete;
  HostFile& operator=(const HostFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  void remove() const { ::unlink(path_.c_str()); }

  std::string path_;
};

mx::distributed::Group init(const std::string& backend) {
  try {
    return mx::distributed::init(/*strict=*/true, backend);
  } catch (const std::exception& error) {
    throw InputError(
        fmt::format("--backend {}: MLX refuses: {}; --backend tcp needs nothing", backend, error.what()));
  }
}

}  // namespace

std::vector<std::string> automatic_backends(int gpus, int ranks) {
  std::vector<std::string> names;
  if (mx::distributed::is_available("jaccl") && std::getenv("MLX_IBV_DEVICES")) names.emplace_back("jaccl");
  // Each rank sees one GPU of its own where there are several (kernels/cuda_kernel.h: use_one_cuda_gpu).
  if (ranks > 1 && gpus >= ranks && mx::distributed::is_available("nccl")) names.emplace_back("nccl");
  return names;
}

std::string choose_backend(const std::string& wanted, const std::vector<std::vector<std::string>>& offers) {
  if (wanted != "auto") return wanted;
  for (const char* name : {"jaccl", "nccl"}) {
    const bool everywhere = std::all_of(offers.begin(), offers.end(), [&](const auto& offer) {
      return std::find(offer.begin(), offer.end(), name) != offer.end();
    });
    if (everywhere) return name;
  }
  return "tcp";
}

mx::distributed::Group join_mlx_group(const std::string& backend, int rank,
                                      const std::vector<Endpoint>& endpoints) {
  if (!mx::distributed::is_available(backend)) {
    throw InputError(fmt::format(
        "--backend {}: the MLX of this machine does not have it; take auto, tcp or ring", backend));
  }
  if (endpoints.size() < 2) throw InputError(fmt::format("--backend {} needs two ranks or more", backend));
  set("MLX_RANK", std::to_string(rank));
  if (backend == "ring") {
    const HostFile hosts(endpoints);
    set("MLX_HOSTFILE", hosts.path());
    return init(backend);
  }
  if (backend == "jaccl") {
    if (!std::getenv("MLX_IBV_DEVICES")) {
      throw InputError(
          "--backend jaccl: set MLX_IBV_DEVICES to the file of RDMA devices on every machine (MLX's "
          "documentation of jaccl)");
    }
    set("MLX_JACCL_COORDINATOR", first_address(endpoints.front()));
    return init(backend);
  }
  set("NCCL_HOST_IP", endpoints.front().addresses.front());
  set("NCCL_PORT", std::to_string(endpoints.front().port));
  set("MLX_WORLD_SIZE", std::to_string(endpoints.size()));
  return init(backend);
}

}  // namespace tandem::parallel
