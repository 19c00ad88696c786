#include <gtest/gtest.h>

#include "base/result.h"

TEST(Train, TorchLinks) {
  CHECK(torch::ones({2, 2}).sum().item<float>() == 4.0f, "torch");
}
