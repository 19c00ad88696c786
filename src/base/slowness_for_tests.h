// How many times longer a test's work may take in this build: what a sanitizer costs. For limits of time in
// tests, never for how long the product waits.
//
//   EXPECT_LT(clock.seconds(), 2 * kSlowness);
#pragma once

namespace flywheel {

#if defined(__SANITIZE_THREAD__)
constexpr double kSlowness = 10;
#elif defined(__SANITIZE_ADDRESS__)
constexpr double kSlowness = 4;
#else
constexpr double kSlowness = 1;
#endif

}  // namespace flywheel
