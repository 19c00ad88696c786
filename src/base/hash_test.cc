#include "base/hash.h"

#include <gtest/gtest.h>

namespace flywheel {
namespace {

TEST(Hash, KnownValues) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha1_hex("abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
}

TEST(Hash, CrcContinues) {
  EXPECT_EQ(crc32c("6789", crc32c("12345")), crc32c("123456789"));
  // 32 bytes of zeros: RFC 3720, B.4.
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
}

}  // namespace
}  // namespace flywheel
