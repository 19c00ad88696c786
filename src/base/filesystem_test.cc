#include "base/filesystem.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"

namespace flywheel {
namespace {

TEST(FileSystem, LocalRoundTrip) {
  const TempFolder folder;
  const FileSystem fs = FileSystem::open(folder.path()).value();
  ASSERT_TRUE(fs.write("a/b.txt", "hello world").ok());
  ASSERT_TRUE(fs.write("c.txt", "x").ok());
  const auto entries = fs.list().value();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].path, "a/b.txt");
  EXPECT_EQ(entries[0].size_bytes, 11u);
  EXPECT_EQ(fs.read("a/b.txt").value(), "hello world");
  EXPECT_EQ(fs.read_range("a/b.txt", 6, 5).value(), "world");
  ASSERT_TRUE(fs.remove("c.txt").ok());
  const Error gone = fs.read("c.txt").error();
  EXPECT_EQ(gone.code, ErrorCode::kNotFound);
  EXPECT_THAT(gone.message, testing::HasSubstr("No such file"));
  EXPECT_EQ(fs.read("../c.txt").error().code, ErrorCode::kDenied);
  EXPECT_EQ(fs.write("/etc/x", "x").error().code, ErrorCode::kDenied);
}

TEST(FileSystem, UriErrors) {
  EXPECT_FALSE(FileSystem::open("nosuch://x/y").ok());
  EXPECT_EQ(uri_scheme("s3://a/b"), "s3");
  EXPECT_EQ(uri_scheme("/a/b"), "");
}

TEST(FileSystem, PublicUriHasNoPassword) {
  EXPECT_EQ(public_uri("s3://key:secret@bucket/a"), "s3://bucket/a");
  EXPECT_EQ(public_uri("s3://key:se/cr+et/@bucket/a@b?region=x@y"), "s3://bucket/a@b?region=x@y");
  EXPECT_EQ(public_uri("s3://key:12/34@bucket"), "s3://bucket");
  EXPECT_EQ(public_uri("s3://key:s%2Fe@bucket"), "s3://bucket");
  EXPECT_EQ(public_uri("http://user:p?w@host/a"), "http://host/a");
  EXPECT_EQ(public_uri("gs://anonymous@bucket/a@b"), "gs://bucket/a@b");
  EXPECT_EQ(public_uri("http://user:pw@host:80/api?x=1"), "http://host:80/api?x=1");
  EXPECT_EQ(public_uri("s3://b/x/?access_key=AK&region=eu&secret_key=S%2F/@"),
            "s3://b/x/?access_key=(secret)&region=eu&secret_key=(secret)");
  EXPECT_EQ(public_uri("http://u:p@h/x?X-Amz-Signature=ab"), "http://h/x?X-Amz-Signature=(secret)");
  for (const char* plain : {"s3://bucket/a@b:c", "hdfs://host:8020/a@b", "http://host:80?a@b", "/a:b/c@d",
                            "s3://", "file:///a:b/c@d", "s3://key:no/host"}) {
    EXPECT_EQ(public_uri(plain), plain);
  }
}

// The main() of these tests holds no session: the library that only a session ends is not started.
TEST(FileSystem, ObjectStoresNeedASession) {
  const Error error = FileSystem::open("s3://bucket/key").error();
  EXPECT_EQ(error.code, ErrorCode::kUnavailable);
  EXPECT_THAT(error.message, testing::HasSubstr("ObjectStoreSession"));
}

}  // namespace
}  // namespace flywheel
