// Ctrl-C as a question that a loop asks.
#pragma once

#include <signal.h>

namespace tandem::cli {

// Takes Ctrl-C in while it lives, instead of ending the program.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  // Ctrl-C came since the last guard was made.
  static bool interrupted();

 private:
  struct sigaction before_ {};
};

}  // namespace tandem::cli
