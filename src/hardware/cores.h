// The processor's cores, and which of them this process uses.
#pragma once

#include <vector>

namespace tandem::hardware {

// Physical cores that this process may use (of a Mac: the performance cores); at least 1.
int physical_cores();

// This thread, and those it starts from now on, run on these cores alone. InputError names the ones that
// this process may not use; it is one too where the system cannot pin (anything but Linux).
void keep_to_cores(const std::vector<int>& cores);

// Where threads share a core, one that another wakes waits until that one waits or its time is up: a step's
// operations are given and computed by two threads. Linux; nothing elsewhere.
void prefer_no_preemption();

}  // namespace tandem::hardware
