// main() of the rooms' tests. GoogleTest calls a program a success in which every test was skipped; ctest is
// told the truth.
#include <gmock/gmock.h>

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  const int failed = RUN_ALL_TESTS();
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  const bool only_skipped = all.skipped_test_count() > 0 && all.successful_test_count() == 0;
  return failed == 0 && only_skipped ? 77 : failed;
}
