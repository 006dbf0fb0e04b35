// One rank: the program `tandem worker`, a child process of the conductor.
#pragma once

namespace tandem::cluster {

// Speaks the protocol of cluster/protocol.h on stdin and stdout until end-of-file. Returns the process's exit
// code.
int worker_main();

}  // namespace tandem::cluster
