// One rank: the program `tandem worker`, a child process of the conductor.
#pragma once

#include <filesystem>

namespace tandem::cluster {

// Speaks the protocol of cluster/protocol.h on stdin and stdout until end-of-file. Returns the process's exit
// code. `cache`: this machine's folder for what can be had again.
int worker_main(const std::filesystem::path& cache);

}  // namespace tandem::cluster
