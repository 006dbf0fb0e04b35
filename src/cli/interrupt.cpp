#include "cli/interrupt.h"

namespace tandem::cli {
namespace {

volatile sig_atomic_t came = 0;
int guards = 0;

}  // namespace

InterruptGuard::InterruptGuard() {
  if (guards++ > 0) return;
  came = 0;
  struct sigaction action {};
  action.sa_handler = [](int) { came = came == 0 ? 1 : 2; };
  action.sa_flags = SA_RESTART;  // a write to a slow terminal goes on
  ::sigaction(SIGINT, &action, &before_);
}

InterruptGuard::~InterruptGuard() {
  if (--guards == 0) ::sigaction(SIGINT, &before_, nullptr);
}

bool InterruptGuard::interrupted() { return came != 0; }
bool InterruptGuard::insists() { return came > 1; }
void InterruptGuard::forget() { came = 0; }

}  // namespace tandem::cli
