#include "base/file_lock.h"

#include <gtest/gtest.h>

#include "base/file.h"

namespace flywheel {
namespace {

TEST(FileLock, UnfinishedFilesOfTheDeadAreRemovedAndNothingElse) {
  const TempFolder folder;
  for (const char* name : {"a.tmp.4711.0", "deep/er/b.jsonl.tmp.1.17", "a.tmp.4711", "tmp.4711.0x", "v.1.2",
                           ".tmp.5", "a.tmp.4711.0.jsonl"})
    ASSERT_TRUE(write_file(folder / name, "x").ok());
  EXPECT_EQ(remove_unfinished(folder.path()).value(), 2);
  EXPECT_EQ(list_folder(folder.path()).value(),
            (std::vector<std::string>{".tmp.5", "a.tmp.4711", "a.tmp.4711.0.jsonl", "deep", "tmp.4711.0x",
                                      "v.1.2"}));
  EXPECT_TRUE(list_folder(folder / "deep/er").value().empty());
  EXPECT_EQ(remove_unfinished(folder / "none").error().code, ErrorCode::kNotFound);
}

TEST(FileLock, OneHolderOfALock) {
  const TempFolder folder;
  {
    const FileLock one = FileLock::take(folder / "in/a.lock", Deadline::after_ms(0)).value();
    EXPECT_EQ(FileLock::take(folder / "in/a.lock", Deadline::after_ms(30)).error().code,
              ErrorCode::kDeadline);
    EXPECT_TRUE(FileLock::take(folder / "in/b.lock", Deadline::after_ms(0)).ok());
  }
  EXPECT_TRUE(FileLock::take(folder / "in/a.lock", Deadline::after_ms(0)).ok());
}

}  // namespace
}  // namespace flywheel
