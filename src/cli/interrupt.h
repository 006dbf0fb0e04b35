// Ctrl-C as a question that a loop asks.
#pragma once

#include <signal.h>

namespace tandem::cli {

// Of a verb that Ctrl-C has stopped.
inline constexpr int exit_interrupted = 130;

// Ctrl-C came while a verb waited for something that only ends by itself.
struct Interrupted {};

// Takes Ctrl-C in while it lives, instead of ending the program. Guards may nest, in one thread.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  // Ctrl-C came since the outermost guard was made or it was last forgotten.
  static bool interrupted();
  // More than once: whoever asks does not want to wait for what is under way.
  static bool insists();
  static void forget();

 private:
  struct sigaction before_ {};
};

}  // namespace tandem::cli
