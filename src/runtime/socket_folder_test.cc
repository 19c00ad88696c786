#include "runtime/socket_folder.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <optional>

#include "base/file.h"

namespace flywheel::runtime {
namespace {
namespace fs = std::filesystem;

// A process that made a folder in `above` and has not ended; its path.
pid_t start_owner(const std::string& above, std::string& path) {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto folder = SocketFolder::make(above);
    const std::string made = folder.ok() ? folder->path() : "";
    (void)!::write(ends[1], made.data(), made.size());
    ::close(ends[1]);
    for (;;) ::pause();
  }
  ::close(ends[1]);
  char text[4096];
  for (ssize_t n; (n = ::read(ends[0], text, sizeof text)) > 0;) path.append(text, static_cast<size_t>(n));
  ::close(ends[0]);
  return child;
}

TEST(SocketFolder, IsForItsOwnerAloneAndGoesWithIt) {
  const TempFolder above;
  std::string path;
  {
    const SocketFolder folder = SocketFolder::make(above.path()).value();
    path = folder.path();
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0700u);
  }
  EXPECT_FALSE(path_exists(path));
}

TEST(SocketFolder, LiesInTmpWhereTheTemporaryFolderIsTooDeep) {
  const TempFolder above;
  const std::string deep = above / std::string(90, 'x');
  ASSERT_TRUE(make_folders(deep).ok());
  EXPECT_TRUE(SocketFolder::make(deep).value().path().starts_with("/tmp/"));
}

TEST(SocketFolder, TheNextOneRemovesWhatAKilledOneLeft) {
  const TempFolder above;
  std::string living, dead;
  const pid_t survivor = start_owner(above.path(), living), victim = start_owner(above.path(), dead);
  ASSERT_TRUE(write_file(dead + "/commands", "a socket").ok());
  ASSERT_TRUE(write_file(living + "/commands", "a socket").ok());
  // What looks like one and is none of ours: a link, a folder without a lock (only now being made), a file.
  const TempFolder elsewhere;
  ASSERT_TRUE(write_file(elsewhere / "owner.lock", "").ok());
  fs::create_directory_symlink(elsewhere.path(), above / "flywheel-sockets.link");
  ASSERT_TRUE(make_folders(above / "flywheel-sockets.young").ok());
  ASSERT_TRUE(write_file(above / "flywheel-sockets.file", "").ok());
  ASSERT_TRUE(write_file(above / "another/owner.lock", "").ok());

  { const SocketFolder next = SocketFolder::make(above.path()).value(); }
  EXPECT_TRUE(path_exists(dead)) << "its owner lives";
  ::kill(victim, SIGKILL);
  ::waitpid(victim, nullptr, 0);
  { const SocketFolder next = SocketFolder::make(above.path()).value(); }
  EXPECT_FALSE(path_exists(dead));
  EXPECT_TRUE(path_exists(living + "/commands"));
  EXPECT_TRUE(path_exists(elsewhere / "owner.lock"));
  for (const char* other : {"flywheel-sockets.young", "flywheel-sockets.file", "another/owner.lock"})
    EXPECT_TRUE(path_exists(above / other)) << other;
  ::kill(survivor, SIGKILL);
  ::waitpid(survivor, nullptr, 0);
}

TEST(SocketFolder, WhereNoneCanBeMadeSaysSo) {
  EXPECT_EQ(SocketFolder::make("/nowhere/at/all").error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace flywheel::runtime
