// What tests of kernels begin with and leave behind.
#pragma once

#include <gtest/gtest.h>
#include <mlx/random.h>

#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {

class KernelsTest : public testing::Test {
 protected:
  void SetUp() override { mlx::core::random::seed(1); }
  void TearDown() override {
    use_loops(nullptr);
    use_activations(Activations::automatic);
    set_threads(1);
  }
};

}  // namespace tandem::kernels
