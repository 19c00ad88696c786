// How much a slow test takes of all it could: a few of its cases, other ones each time. With
// FLYWHEEL_TEST_ALL set it takes all of them; those of all slow tests together take an hour on two cores.
//
//   for (int i = 0; i < cases_to_draw(4, 30); ++i) ...random case...
//   if (!is_drawn(3)) GTEST_SKIP() << kNotDrawn;
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <vector>

namespace flywheel {

inline bool takes_all_cases() {
  return std::getenv("FLYWHEEL_TEST_ALL") != nullptr;
}

inline int cases_to_draw(int usual, int all) {
  return takes_all_cases() ? all : usual;
}

// `usual` of them.
template <typename T>
std::vector<T> drawn(std::vector<T> all, size_t usual) {
  if (takes_all_cases()) return all;
  std::shuffle(all.begin(), all.end(), std::mt19937(std::random_device{}()));
  all.resize(std::min(usual, all.size()));
  return all;
}

// One time in `of`; always where tests are asked for by name (--gtest_filter).
inline bool is_drawn(unsigned of) {
  return takes_all_cases() || GTEST_FLAG_GET(filter) != "*" || std::random_device{}() % of == 0;
}

inline constexpr const char* kNotDrawn = "not drawn this time; FLYWHEEL_TEST_ALL=1 takes all";

}  // namespace flywheel
