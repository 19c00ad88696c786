#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

namespace flywheel {
namespace {

TEST(File, WriteReadMapAndStayWithin) {
  const TempFolder folder;
  ASSERT_TRUE(write_file(folder / "a/b.txt", "hello").ok());
  EXPECT_EQ(read_file(folder / "a/b.txt").value(), "hello");
  EXPECT_EQ(MappedFile::open(folder / "a/b.txt").value().bytes(), "hello");
  EXPECT_EQ(list_folder(folder / "a").value(), std::vector<std::string>{"b.txt"});
  EXPECT_EQ(path_within(folder.path(), "../x").error().code, ErrorCode::kDenied);
  EXPECT_TRUE(path_within(folder.path(), "a/b.txt").ok());
}

TEST(File, ADeviceOrPipeIsNotReplacedByAFile) {
  const TempFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(write_file(folder / "pipe", "x").error().code, ErrorCode::kInvalid);
  std::filesystem::create_symlink(folder / "pipe", folder / "link");
  EXPECT_EQ(write_file(folder / "link", "x").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(list_folder(folder.path())->size(), 2U);
}

TEST(File, AtomicFileLeavesNothingWithoutCommit) {
  const TempFolder folder;
  {
    AtomicFile file = AtomicFile::create(folder / "x").value();
    ASSERT_TRUE(file.write("half").ok());
  }
  EXPECT_TRUE(list_folder(folder.path()).value().empty());
  AtomicFile file = AtomicFile::create(folder / "x").value();
  ASSERT_TRUE(file.write("....whole").ok());
  ASSERT_TRUE(file.write_at(0, "HEAD").ok());
  ASSERT_TRUE(file.commit().ok());
  EXPECT_EQ(read_file(folder / "x").value(), "HEADwhole");
}

TEST(File, WhatIsWrittenCanBeReadByASecondNameBeforeCommit) {
  const TempFolder folder;
  MappedFile early;
  {
    AtomicFile file = AtomicFile::create(folder / "x").value();
    ASSERT_TRUE(file.write("all of it").ok());
    file.start_sync();
    ASSERT_TRUE(file.link_as(folder / "x.written").ok());
    early = MappedFile::open(folder / "x.written").value();
    EXPECT_EQ(early.bytes(), "all of it");
    EXPECT_EQ(file.link_as(folder / "x.written").error().code, ErrorCode::kIo) << "the name is taken";
    EXPECT_FALSE(path_exists(folder / "x"));
    ASSERT_TRUE(file.commit().ok());
  }
  EXPECT_EQ(read_file(folder / "x").value(), "all of it");
  EXPECT_TRUE(std::filesystem::equivalent(folder / "x", folder / "x.written"));
  {
    AtomicFile given_up = AtomicFile::create(folder / "y").value();
    ASSERT_TRUE(given_up.write("half").ok());
    ASSERT_TRUE(given_up.link_as(folder / "y.written").ok());
  }
  EXPECT_EQ(list_folder(folder.path()).value(), (std::vector<std::string>{"x", "x.written", "y.written"}));
  ASSERT_TRUE(remove_all(folder / "x.written").ok());
  EXPECT_EQ(early.bytes(), "all of it") << "a map outlives the name";
}

TEST(File, AppendCutsATornTail) {
  const TempFolder folder;
  {
    AppendFile file = AppendFile::open(folder / "log").value();
    ASSERT_TRUE(file.append("abcdef").ok());
  }
  AppendFile file = AppendFile::open(folder / "log", 3).value();
  ASSERT_TRUE(file.append("X").ok());
  EXPECT_EQ(file.size_bytes(), 4u);
  EXPECT_EQ(read_file(folder / "log").value(), "abcX");
}

TEST(File, PathWithinRefusesLinksThatLeave) {
  const TempFolder folder;
  std::filesystem::create_symlink("/etc", folder / "out");
  EXPECT_EQ(path_within(folder.path(), "out/passwd").error().code, ErrorCode::kDenied);
  EXPECT_EQ(path_within(folder.path(), "/etc/passwd").error().code, ErrorCode::kDenied);
  EXPECT_EQ(read_file(folder / "nothing").error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace flywheel
