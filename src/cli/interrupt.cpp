#include "cli/interrupt.h"

namespace tandem::cli {
namespace {

volatile sig_atomic_t came = 0;

}  // namespace

InterruptGuard::InterruptGuard() {
  came = 0;
  struct sigaction action {};
  action.sa_handler = [](int) { came = 1; };
  ::sigaction(SIGINT, &action, &before_);
}

InterruptGuard::~InterruptGuard() { ::sigaction(SIGINT, &before_, nullptr); }

bool InterruptGuard::interrupted() { return came != 0; }

}  // namespace tandem::cli
