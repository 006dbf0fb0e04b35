// A long piece of work that shows how far it is and that Ctrl-C stops.
#pragma once

#include <chrono>
#include <string>

#include "cli/interrupt.h"

namespace tandem::cli {

// Runs work(), which throws `Stopped` where InterruptGuard::interrupted(), and gives report() what it made
// and the seconds that it took. The exit code. What `display` shows is gone by then; `stopped` is its last
// word after Ctrl-C.
template <typename Stopped, typename Display, typename Work, typename Report>
int run_stoppable(Display& display, const std::string& stopped, Work work, Report report) {
  const InterruptGuard guard;
  const auto start = std::chrono::steady_clock::now();
  try {
    const auto made = work();
    display.clear();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    report(made, time.count());
    return 0;
  } catch (const Stopped&) {
    display.note(stopped);
    return exit_interrupted;
  } catch (...) {
    display.clear();
    throw;
  }
}

}  // namespace tandem::cli
