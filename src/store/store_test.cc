// Artifacts: their content, versions, aliases, collection and repair; opening a store.
#include "store/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "base/file.h"
#include "base/hash.h"
#include "base/philox.h"
#include "store/database.h"
#include "store/store_for_test.h"

namespace flywheel::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class StoreTest : public StoreForTest {};
FLYWHEEL_TEST_ON_BOTH_DATABASES(StoreTest);

std::string random_bytes(uint64_t seed, size_t size) {
  Philox rng(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(rng.next_u32());
  return bytes;
}

TEST_P(StoreTest, FolderComesBackFileByFile) {
  const std::string big = random_bytes(1, 3'000'001);
  write("in/config.json", "{}");
  write("in/weights/part-1.bin", big);
  write("in/empty", "");
  const Artifact made =
      store().put_artifact({.kind = "model", .name = "org/tiny", .path = folder_ / "in"}).value();
  EXPECT_EQ(made.ref(), "org/tiny:1");
  EXPECT_EQ(made.size_bytes, big.size() + 2);
  EXPECT_THAT(made.aliases, ElementsAre("latest"));
  ASSERT_EQ(made.files.size(), 3u);
  EXPECT_EQ(made.files[2].path, "weights/part-1.bin");
  EXPECT_EQ(made.files[2].sha256, sha256_hex(big));

  const Artifact found = open().resolve("org/tiny").value();  // another connection
  const std::string path = store().path_of(found, Store::Verify::kYes).value();
  EXPECT_EQ(read_file(path + "/weights/part-1.bin").value(), big);
  EXPECT_EQ(read_file(path + "/config.json").value(), "{}");
  EXPECT_EQ(read_file(path + "/empty").value(), "");
  EXPECT_TRUE(store().verify()->problems.empty());
}

TEST_P(StoreTest, WhatLiesElsewhereIsCountedAndNotRead) {
  write("one", "1");
  ASSERT_TRUE(store().put_artifact({.kind = "model", .name = "one", .path = folder_ / "one"}).ok());
  ASSERT_TRUE(store().put_source("raw", "/nowhere/docs", sha256_hex("listing"), 40).ok());
  const VerifyReport report = store().verify().value();
  EXPECT_EQ(report.artifacts_checked, 1);
  EXPECT_EQ(report.by_reference, 1);
  EXPECT_EQ(report.blobs_checked, 1);
  EXPECT_TRUE(report.problems.empty());
}

TEST_P(StoreTest, OneFileStaysAFile) {
  const Artifact made =
      store().put_artifact({.kind = "model", .name = "gguf", .path = write("model.gguf", "GGUF")}).value();
  EXPECT_TRUE(made.is_file);
  const std::string path = store().path_of(made).value();
  EXPECT_EQ(std::filesystem::path(path).filename(), "model.gguf");
  EXPECT_EQ(read_file(path).value(), "GGUF");
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0222, 0u) << "content in the store is read-only";
}

TEST_P(StoreTest, LinkAndMoveMakeNoSecondCopy) {
  const std::string linked = write("linked", "abc"), moved = write("moved", "def");
  struct stat before {
  }, after{};
  ASSERT_EQ(::stat(linked.c_str(), &before), 0);
  const Artifact a =
      store().put_artifact({.kind = "model", .name = "a", .path = linked, .ingest = Ingest::kLink}).value();
  ASSERT_EQ(::stat(store().path_of(a)->c_str(), &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
  const Artifact b =
      store().put_artifact({.kind = "model", .name = "b", .path = moved, .ingest = Ingest::kMove}).value();
  EXPECT_FALSE(path_exists(moved));
  EXPECT_EQ(read_file(store().path_of(b).value()).value(), "def");
  // The same content again, by every way.
  for (const Ingest ingest : {Ingest::kCopy, Ingest::kLink, Ingest::kMove}) {
    const std::string again = write("again", "abc");
    const Artifact c =
        store().put_artifact({.kind = "model", .name = "c", .path = again, .ingest = ingest}).value();
    EXPECT_EQ(read_file(store().path_of(c).value()).value(), "abc");
    EXPECT_EQ(path_exists(again), ingest != Ingest::kMove);
  }
  EXPECT_THAT(list_folder(store().home() + "/incoming").value(), IsEmpty());
}

TEST_P(StoreTest, VersionsAliasesAndTheirHistory) {
  put("tiny", "one");
  put("tiny", "two");
  ASSERT_TRUE(store().set_alias("tiny:1", "prod").ok());
  ASSERT_TRUE(store().set_alias("tiny@latest", "prod").ok());
  ASSERT_TRUE(store().set_alias("tiny:1", "prod").ok());
  EXPECT_EQ(store().resolve("tiny@prod")->version, 1);
  EXPECT_EQ(store().resolve("tiny")->version, 2);
  EXPECT_EQ(store().resolve("tiny:2")->version, 2);
  EXPECT_THAT(store().resolve("tiny:1")->aliases, ElementsAre("prod"));
  EXPECT_EQ(store().remove_artifact("tiny:1").error().code, ErrorCode::kDenied);
  ASSERT_TRUE(store().remove_alias("tiny", "prod").ok());
  EXPECT_EQ(store().remove_alias("tiny", "prod").error().code, ErrorCode::kNotFound);
  std::vector<int64_t> versions;
  const auto history = store().alias_history("tiny").value();
  for (const AliasChange& change : history) versions.push_back(change.version);
  EXPECT_THAT(versions, ElementsAre(1, 2, 1, 0));
}

TEST_P(StoreTest, BadRequestsAreRefusedWithTheReason) {
  put("tiny", "one");
  const auto code = [&](const NewArtifact& request) { return store().put_artifact(request).error().code; };
  EXPECT_EQ(code({.kind = "dataset", .name = "tiny", .contents = {{"x", "1"}}}), ErrorCode::kExists);
  EXPECT_EQ(code({.kind = "model", .name = "a:b", .contents = {{"x", "1"}}}), ErrorCode::kInvalid);
  EXPECT_EQ(code({.kind = "model", .name = "../a", .contents = {{"x", "1"}}}), ErrorCode::kInvalid);
  EXPECT_EQ(code({.kind = "", .name = "a", .contents = {{"x", "1"}}}), ErrorCode::kInvalid);
  EXPECT_EQ(code({.kind = "model", .name = "a"}), ErrorCode::kInvalid);
  EXPECT_EQ(code({.kind = "model", .name = "a", .path = "/nowhere"}), ErrorCode::kNotFound);
  EXPECT_EQ(code({.kind = "model", .name = "a", .path = "/dev/null"}), ErrorCode::kInvalid);
  for (const char* path : {"../x", "/x", "a//b", "a/./b", "a/", "", "a\nb"}) {
    EXPECT_EQ(code({.kind = "model", .name = "a", .contents = {{path, "1"}}}), ErrorCode::kInvalid) << path;
  }
  EXPECT_EQ(code({.kind = "model", .name = "a", .contents = {{"x", "1"}, {"x/y", "2"}}}),
            ErrorCode::kInvalid);
  EXPECT_EQ(code({.kind = "model", .name = "a", .contents = {{"x", "1"}}, .inputs = {"none"}}),
            ErrorCode::kNotFound);
  EXPECT_EQ(code({.kind = "model", .name = "a", .contents = {{"x", "1"}}, .run = "none-1"}),
            ErrorCode::kNotFound);
  EXPECT_THAT(store().resolve("tyny").error().message, HasSubstr("did you mean tiny?"));
  EXPECT_EQ(store().resolve("tiny:9").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(store().resolve("tiny:prod").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(store().set_alias("tiny", "latest").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(store().resolve("a").error().code, ErrorCode::kNotFound)
      << "nothing of the refused ones is there";
  EXPECT_EQ(put("tiny", "two").version, 2) << "a refused put does not use a number";
}

TEST_P(StoreTest, OnceMakesOneVersion) {
  const NewArtifact request{
      .kind = "checkpoint", .name = "c", .contents = {{"x", "1"}}, .once = "tiny-1/100"};
  const Artifact first = store().put_artifact(request).value();
  EXPECT_EQ(store().put_artifact(request)->id, first.id);
  EXPECT_EQ(store().list_artifacts({.name = "c"})->size(), 1u);
  ASSERT_TRUE(store().remove_artifact("c").ok());
  EXPECT_EQ(store().put_artifact(request)->version, 2) << "what was removed can be made again";
}

TEST_P(StoreTest, TheSameFilesAgainAreTheSameVersionWhereAsked) {
  NewArtifact request{.kind = "model", .name = "m", .contents = {{"x", "1"}}, .if_same = IfSame::kReturnIt};
  EXPECT_EQ(store().put_artifact(request)->version, 1);
  EXPECT_EQ(store().put_artifact(request)->version, 1);
  request.contents["x"] = "2";
  EXPECT_EQ(store().put_artifact(request)->version, 2);
  request.contents["x"] = "1";
  EXPECT_EQ(store().put_artifact(request)->version, 3) << "only the latest counts";
  EXPECT_EQ(store().gc()->blobs_reserved, 0);
}

TEST_P(StoreTest, CollectionTakesOnlyWhatNobodyRefersTo) {
  put("keep", "shared bytes");
  put("drop", "shared bytes");
  const Artifact only = put("drop", "only here");
  const std::string view = store().path_of(only).value();
  ASSERT_TRUE(store().remove_artifact("drop:1").ok());
  ASSERT_TRUE(store().remove_artifact("drop:2").ok());
  EXPECT_EQ(store().gc(Store::GcMode::kDryRun)->blobs_removed, 1);
  EXPECT_TRUE(path_exists(view));
  const GcReport report = store().gc().value();
  EXPECT_EQ(report.blobs_removed, 1);
  EXPECT_EQ(report.bytes_freed, std::string("only here").size());
  EXPECT_EQ(report.blobs_kept, 1);
  EXPECT_FALSE(path_exists(view));
  EXPECT_EQ(read_file(store().path_of(store().resolve("keep").value()).value() + "/weights").value(),
            "shared bytes");
  EXPECT_EQ(store().gc()->blobs_removed, 0);
  EXPECT_EQ(store().resolve("drop").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(store().path_of(store().resolve("drop:2").value()).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(put("drop", "third").version, 3) << "a version's number is never used again";
  EXPECT_TRUE(store().verify()->problems.empty());
}

TEST_P(StoreTest, CollectionRemovesFilesWithoutARow) {
  put("a", "x");
  const std::string stranger = store().home() + "/blobs/ab/" + sha256_hex("stranger");
  write_file(stranger, "stranger").value();
  write_file(store().home() + "/incoming/dead.1.2.3-0", "left by a writer").value();
  EXPECT_EQ(store().gc()->leftovers_removed, 2);
  EXPECT_FALSE(path_exists(stranger));
  EXPECT_TRUE(store().verify()->problems.empty());
}

TEST_P(StoreTest, DamageIsFoundByNameAndMendedByTheSameContent) {
  const std::string bytes = random_bytes(7, 100'000);
  const Artifact made = put("tiny", bytes);
  const std::string blob =
      store().home() + "/blobs/" + made.files[0].sha256.substr(0, 2) + "/" + made.files[0].sha256;
  std::string damaged = bytes;
  damaged[5000] = static_cast<char>(damaged[5000] ^ 1);
  std::filesystem::permissions(blob, std::filesystem::perms::owner_all);
  write_file(blob, damaged).value();
  const VerifyReport report = store().verify().value();
  ASSERT_EQ(report.problems.size(), 1u);
  EXPECT_EQ(report.problems[0].sha256, made.files[0].sha256);
  EXPECT_THAT(report.problems[0].artifacts, ElementsAre("tiny:1 weights"));
  // What differs, and nothing that does not; where it is used; what to do.
  EXPECT_EQ(
      report.problems[0].what,
      "corrupt: " + blob + " has the SHA-256 " + sha256_hex(damaged) +
          ", in tiny:1 weights; `flywheel store remove tiny:1` and make it again (pull, prepare), which "
          "replaces the file, or restore the file from a backup");
  const Error refused = store().path_of(made, Store::Verify::kYes).error();
  EXPECT_EQ(refused.code, ErrorCode::kCorrupt);
  EXPECT_THAT(refused.message, HasSubstr("`flywheel store remove tiny:1`"));
  write_file(blob, damaged.substr(1)).value();
  EXPECT_THAT(store().verify()->problems[0].what,
              HasSubstr("has 99999 bytes, not 100000, in tiny:1 weights;"));
  put("tiny", bytes);
  EXPECT_TRUE(store().verify()->problems.empty());
  EXPECT_EQ(read_file(store().path_of(made, Store::Verify::kYes).value() + "/weights").value(), bytes);

  std::filesystem::remove(blob);
  const VerifyReport missing = store().verify().value();
  ASSERT_EQ(missing.problems.size(), 1u);
  EXPECT_THAT(missing.problems[0].what, HasSubstr("missing"));
  EXPECT_THAT(missing.problems[0].artifacts, ElementsAre("tiny:1 weights", "tiny:2 weights"));
}

TEST(StoreOpen, SaysWhatIsWrong) {
  TempFolder folder;
  EXPECT_EQ(Store::open("s3://bucket/x").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(Store::open("postgres:///x?host=/nowhere", folder.path()).error().code, ErrorCode::kUnavailable);
  write_file(folder / "home/flywheel.db", std::string(8192, 'x')).value();
  EXPECT_EQ(Store::open(folder / "home").error().code, ErrorCode::kCorrupt);
  write_file(folder / "file", "").value();
  EXPECT_EQ(Store::open(folder / "file").error().code, ErrorCode::kIo);
}

// Neither in our words nor in libpq's is any part of a password repeated.
TEST(StoreOpen, NeverSaysAPassword) {
  TempFolder folder;
  for (const char* address :
       {"postgres://u:pg%ZZSECRETpw@h/d", "postgres://u:pg@SECRETpw@h/d", "postgres://u:pg/SECRETpw@h/d",
        "postgres://u:pg?SECRETpw@h/d", "postgres://u:pg:SECRETpw@[::1/d", "postgres://u:SECRETpw/d",
        "postgresql:///d?pasword=SECRETpw", "postgre://u:SECRETpw@h/d", "POSTGRES://u:SECRETpw@h/d",
        " postgres://u:SECRETpw@h/d", "'postgres://u:SECRETpw@h/d'", "host=127.0.0.1 password=SECRETpw",
        "password=SECRETpw port=1 options=a://b"}) {
    const auto opened = Store::open(address, folder.path());
    ASSERT_FALSE(opened.ok()) << address;
    EXPECT_EQ(opened.error().code, ErrorCode::kInvalid) << address;
    EXPECT_EQ(opened.error().message.find("SECRET"), std::string::npos) << opened.error().message;
    EXPECT_THAT(opened.error().message, HasSubstr("postgres://")) << address;
  }
  EXPECT_EQ(Store::open("postgres://u:a%40%2F%25@/d?host=/nowhere", folder.path()).error().code,
            ErrorCode::kUnavailable);
}

TEST(StoreOpen, RefusesANewerSchema) {
  TempFolder folder;
  (void)Store::open(folder.path()).value();
  auto db = open_sqlite(folder / "flywheel.db").value();
  db->transact(Access::kWrite, [&] { return db->execute("UPDATE store_version SET version = 999"); }).value();
  EXPECT_THAT(Store::open(folder.path()).error().message, HasSubstr("version 999"));
}

}  // namespace
}  // namespace flywheel::store
