// What lies below an input folder besides files and folders: nothing of it is followed out of the folder,
// nothing is passed over in silence, and nothing of it hangs.
#include "data/input.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "data/prepare.h"

namespace flywheel::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

class InputFolder : public testing::Test {
 protected:
  void SetUp() override {
    write_file(secret_ / "secret.txt", "what nobody may read").value();
    write_file(input_ / "a.txt", "words in a file").value();
    write_file(input_ / "sub/b.txt", "other words").value();
  }
  void link(const std::string& target, const std::string& name) {
    std::filesystem::create_symlink(target, input_ / name);
  }
  std::string relative(const std::string& path) const { return path.substr(input_.path().size() + 1); }
  std::vector<std::string> files(const InputList& list) const {
    std::vector<std::string> names;
    for (const InputFile& file : list.files) names.push_back(relative(file.path));
    return names;
  }
  std::map<std::string, std::string> not_read(const InputList& list) const {
    std::map<std::string, std::string> reasons;
    for (const NotRead& one : list.not_read) reasons[relative(one.path)] = one.reason;
    return reasons;
  }
  TempFolder input_, secret_;
};

TEST_F(InputFolder, LinksOutOfItAreNotFollowedAndSaid) {
  link(secret_ / "secret.txt", "notes.txt");
  link(secret_.path(), "more");
  link("../../../../../../../../etc", "sub/etc");
  link(input_ / "a.txt", "again.txt");
  link("..", "sub/up");
  link(secret_ / "secret.bin", "other.bin");
  const InputList list = list_inputs({input_.path()}, {});
  EXPECT_THAT(files(list), ElementsAre("a.txt", "again.txt", "sub/b.txt"));
  EXPECT_THAT(
      not_read(list),
      UnorderedElementsAre(Pair("notes.txt", HasSubstr("it leads to " + secret_.path() + "/secret.txt")),
                           Pair("more", HasSubstr("it leads to " + secret_.path())),
                           Pair("sub/etc", HasSubstr("it leads to /etc"))));
  EXPECT_EQ(list.skipped.at("link to a folder of the input"), 1);
  EXPECT_EQ(list.skipped.at(".bin"), 1);
  // Named by the command itself they are read.
  EXPECT_EQ(list_inputs({input_ / "notes.txt"}, {}).files.size(), 1u);
  EXPECT_EQ(list_inputs({input_ / "n*.txt"}, {}).files.size(), 1u);
}

TEST_F(InputFolder, WhatIsMadeOfItIsNoPartOfIt) {
  const auto list = [&](const std::string& input, const std::string& output) {
    return list_inputs({input}, {}, output);
  };
  const InputList before = list(input_.path(), input_ / "out/");
  write_file(input_ / "out/documents.jsonl", "{}").value();
  write_file(input_ / "sub/out/c.txt", "a folder of the same name").value();
  const InputList after = list(input_.path() + "/sub/..", input_ / "sub/../out");
  EXPECT_EQ(after.files.size(), 3u);
  EXPECT_THAT(files(list(input_.path(), input_ / "out")), ElementsAre("a.txt", "sub/b.txt", "sub/out/c.txt"));
  EXPECT_EQ(before.skipped, after.skipped);
  EXPECT_EQ(after.skipped.at("the output folder"), 1);
  EXPECT_THAT(files(list(input_ / "*", input_ / "out")), ElementsAre("a.txt", "sub/b.txt", "sub/out/c.txt"));
  // The output may lie elsewhere, or around the inputs; it is not itself one.
  EXPECT_EQ(list(input_ / "sub", input_.path()).files.size(), 2u);
  // But what is directly in it, or in a part of a dataset, would be lost.
  for (const char* lost : {"a.txt", "*.txt", "stages/extract.jsonl"}) {
    if (!path_exists(input_ / "stages")) write_file(input_ / "stages/extract.jsonl", "{}").value();
    EXPECT_THROW(list(input_ / lost, input_.path()), UserError) << lost;
  }
  remove_all(input_ / "stages").value();
  EXPECT_THROW(list(input_.path(), input_.path() + "/"), UserError);
  link(input_ / "out", "link");
  EXPECT_THROW(list(input_ / "link", input_ / "out"), UserError);
}

TEST_F(InputFolder, AnEndingThatIsNoUtf8IsCountedByWhatCanBeShown) {
  write_file(input_ / "x.\xff", "x").value();
  write_file(input_ / "y.\xfe", "y").value();
  EXPECT_EQ(list_inputs({input_.path()}, {}).skipped.at(".\uFFFD"), 2);
  DataConfig config;
  config.quality.gopher_quality.enabled = config.quality.gopher_repetition.enabled = false;
  config.quality.c4.enabled = config.dedup.near = false;
  config.tokenizer.vocab_size = 260;
  const PrepareReport report =
      prepare({.inputs = {input_.path()}, .output = secret_ / "out", .config = config}).value();
  EXPECT_EQ(read_report(secret_ / "out")->skipped, report.skipped);
}

TEST_F(InputFolder, DeadLinksLoopsAndPipesAreSaid) {
  link("nowhere.txt", "dead.txt");
  link("loop.txt", "loop.txt");
  link("loop", "loop");
  ASSERT_EQ(mkfifo((input_ / "pipe.txt").c_str(), 0600), 0);
  link("pipe.txt", "to_pipe.txt");
  const InputList list = list_inputs({input_.path()}, {});
  EXPECT_THAT(files(list), ElementsAre("a.txt", "sub/b.txt"));
  EXPECT_THAT(not_read(list), UnorderedElementsAre(Pair("dead.txt", HasSubstr("leads nowhere")),
                                                   Pair("loop.txt", HasSubstr("leads nowhere")),
                                                   Pair("loop", HasSubstr("leads nowhere")),
                                                   Pair("pipe.txt", HasSubstr("pipe")),
                                                   Pair("to_pipe.txt", HasSubstr("pipe"))));
  EXPECT_THROW(list_inputs({input_ / "pipe.txt"}, {}), UserError);
}

TEST_F(InputFolder, FoldersDeeperThanAPathMayBeAreSaid) {
  const std::string before = std::filesystem::current_path().string(), name(200, 'd');
  std::filesystem::current_path(input_.path());
  for (int i = 0; i < 25; ++i) {  // 5,000 bytes; PATH_MAX is 4,096
    ASSERT_EQ(::mkdir(name.c_str(), 0700), 0);
    ASSERT_EQ(::chdir(name.c_str()), 0);
  }
  std::ofstream("deep.txt") << "unseen";
  std::filesystem::current_path(before);
  const InputList list = list_inputs({input_.path()}, {});
  EXPECT_THAT(files(list), ElementsAre("a.txt", "sub/b.txt"));
  ASSERT_EQ(list.not_read.size(), 1u);
  EXPECT_THAT(list.not_read[0].reason, HasSubstr("File name too long"));
  EXPECT_THAT(list.not_read[0].path, HasSubstr(name));
}

TEST_F(InputFolder, FoldersThatMayNotBeListedAreSaid) {
  const std::string closed = input_ / "closed";
  write_file(closed + "/c.txt", "unseen").value();
  // Root may list everything: as nobody, then.
  ASSERT_EQ(chmod(input_.path().c_str(), 0755), 0);
  ASSERT_EQ(chmod(closed.c_str(), 0), 0);
  const uid_t self = geteuid();
  if (self == 0) {
    ASSERT_EQ(seteuid(65534), 0);
  }
  InputList list;
  std::string error;
  try {
    list = list_inputs({input_.path()}, {});
  } catch (const std::exception& thrown) {
    error = thrown.what();
  }
  if (self == 0) {
    ASSERT_EQ(seteuid(0), 0);
  }
  ASSERT_EQ(chmod(closed.c_str(), 0755), 0);
  EXPECT_EQ(error, "");
  EXPECT_THAT(files(list), ElementsAre("a.txt", "sub/b.txt"));
  EXPECT_THAT(not_read(list), ElementsAre(Pair("closed", HasSubstr("cannot be listed: Permission denied"))));
}

TEST_F(InputFolder, WhatIsNotReadIsQuarantinedAndNeverInTheDataset) {
  link(secret_ / "secret.txt", "notes.txt");
  TempFolder out;
  DataConfig config;
  config.quality.gopher_quality.enabled = config.quality.gopher_repetition.enabled = false;
  config.quality.c4.enabled = false;
  config.tokenizer.vocab_size = 257;
  config.shards.validation_fraction = 0;
  ThreadPool pool(2);
  const PrepareRequest request{.inputs = {input_.path()}, .output = out.path(), .config = config};
  EXPECT_EQ(prepare(request, pool).value().stages.at(0).quarantined, 1);
  EXPECT_THAT(read_file(out / "quarantined.jsonl").value(), HasSubstr("notes.txt"));
  EXPECT_EQ(read_file(out / "documents.jsonl").value().find("nobody"), std::string::npos);
  // One more is told although no file has changed; a link that went away is told no more.
  link("nowhere.txt", "dead.txt");
  EXPECT_EQ(prepare(request, pool).value().stages.at(0).quarantined, 2);
  std::filesystem::remove(input_ / "dead.txt");
  std::filesystem::remove(input_ / "notes.txt");
  EXPECT_EQ(prepare(request, pool).value().stages.at(0).quarantined, 0);
}

}  // namespace
}  // namespace flywheel::data
