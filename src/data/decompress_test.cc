// What gzip(1) takes behind a whole stream, and what it does not.
#include <gtest/gtest.h>

#include "data/gzip_for_test.h"
#include "data/input.h"

namespace flywheel::data {
namespace {

TEST(Decompress, ZeroBytesBehindAStreamAreFilling) {
  const std::string text(3'000'000, 'x'), packed = gzip(text);
  for (const size_t zeros : {1, 7, 512, 3'000'000})
    EXPECT_EQ(decompress_gzip(packed + std::string(zeros, '\0'), 1 << 30).value(), text) << zeros;
  EXPECT_EQ(decompress_gzip(packed + gzip("more") + std::string(512, '\0'), 1 << 30).value(), text + "more");
}

TEST(Decompress, OtherBytesBehindAStreamAreAnError) {
  const std::string packed = gzip("text");
  EXPECT_FALSE(decompress_gzip(packed + "y", 100).ok());
  EXPECT_FALSE(decompress_gzip(packed + std::string(100, '\0') + "y", 100).ok());
  EXPECT_FALSE(decompress_gzip(std::string(100, '\0'), 100).ok());
}

}  // namespace
}  // namespace flywheel::data
