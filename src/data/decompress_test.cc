// What gzip(1) takes behind a whole stream, and what it does not.
#include <gtest/gtest.h>
#include <zlib.h>

#include "data/input.h"

namespace flywheel::data {
namespace {

std::string gzip(const std::string& bytes) {
  std::string out(compressBound(bytes.size()) + 64, '\0');
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

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
