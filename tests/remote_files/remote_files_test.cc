// FileSystem and `flywheel data prepare` against real servers of the object stores' protocols.
// tests/remote_files/run starts this with FLYWHEEL_PROGRAM, REMOTE_FILES_PYTHON and REMOTE_FILES_SERVERS set.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <thread>

#include "base/deadline.h"
#include "base/env.h"
#include "base/file.h"
#include "base/filesystem.h"
#include "base/json.h"
#include "base/philox.h"
#include "base/process.h"

namespace flywheel {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string random_bytes(Philox& rng, size_t size) {
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(rng.below(256));
  return bytes;
}

// One of the Python servers beside this file.
class Server {
 public:
  explicit Server(const std::string& script) {
    const std::string ready = folder_ / "ready.json";
    process_ = Process::start(
                   {env::get("REMOTE_FILES_PYTHON"), env::get("REMOTE_FILES_SERVERS") + "/" + script, ready},
                   {.output_file = folder_ / "log"})
                   .value();
    const Deadline deadline = Deadline::after_ms(60'000);
    while (!path_exists(ready)) {
      CHECK(!deadline.expired() && process_.running(), "{} does not start: {}", script,
            read_file(folder_ / "log").value_or(""));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    about_ = parse_json(read_file(ready).value()).value();
  }
  std::string url() const { return about_["url"]; }
  std::string host() const { return url().substr(url().find("://") + 3); }
  std::string key() const { return about_["key"]; }
  std::string secret() const { return about_["secret"]; }
  void signal(int number) { process_.signal(number); }
  void kill() { process_.stop(0); }

 private:
  TempFolder folder_;
  Json about_;
  Process process_;
};

void set(const char* name, const std::string& value) {
  value.empty() ? ::unsetenv(name) : ::setenv(name, value.c_str(), 1);
}

// Reads and writes that every kind of server must answer alike. `fs` is an empty folder.
void expect_file_system(const FileSystem& fs, const std::string& shown) {
  Philox rng(77);
  const std::string large = random_bytes(rng, (11 << 20) + 17);  // more than one part, more than one piece
  ASSERT_TRUE(fs.write("a/large.bin", large).ok());
  ASSERT_TRUE(fs.write("a/b/ü space.txt", "hello world").ok());
  ASSERT_TRUE(fs.write("empty", "").ok());
  ASSERT_TRUE(fs.write("empty", "").ok());
  EXPECT_TRUE(fs.read("a/large.bin").value() == large);
  EXPECT_EQ(fs.read("empty").value(), "");
  EXPECT_EQ(fs.read("a/b/ü space.txt").value(), "hello world");
  for (int i = 0; i < 20; ++i) {
    const uint64_t offset = rng.below(large.size()), length = rng.below(100000);
    ASSERT_TRUE(fs.read_range("a/large.bin", offset, length).value() == large.substr(offset, length));
  }
  EXPECT_EQ(fs.read_range("a/b/ü space.txt", 6, 100).value(), "world");
  EXPECT_EQ(fs.read_range("a/b/ü space.txt", 12, 1).error().code, ErrorCode::kInvalid);
  std::string pieces;
  ASSERT_TRUE(fs.read_pieces("a/large.bin", [&](std::string_view piece) -> Result<void> {
                  pieces += piece;
                  return {};
                }).ok());
  EXPECT_TRUE(pieces == large);

  const std::vector<FileEntry> all = fs.list().value();
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].path, "a/b/ü space.txt");
  EXPECT_EQ(all[1].path, "a/large.bin");
  EXPECT_EQ(all[1].size_bytes, large.size());
  EXPECT_EQ(all[2].path, "empty");
  EXPECT_EQ(fs.list("a/b").value().size(), 1u);
  EXPECT_EQ(fs.stat("a/large.bin")->size_bytes, large.size());

  for (const Error& error : {fs.read("a/none").error(), fs.stat("a/none").error(), fs.list("none").error(),
                             fs.read_range("a/none", 0, 1).error()}) {
    EXPECT_EQ(error.code, ErrorCode::kNotFound) << error.message;
    EXPECT_THAT(error.message, AllOf(HasSubstr(shown), HasSubstr("none")));
  }
  EXPECT_EQ(fs.read("../x").error().code, ErrorCode::kDenied);
  ASSERT_TRUE(fs.remove("empty").ok());
  EXPECT_EQ(fs.read("empty").error().code, ErrorCode::kNotFound);
}

class S3 : public testing::Test {
 protected:
  void SetUp() override {
    set("AWS_ENDPOINT_URL", server_.url());
    set("AWS_ACCESS_KEY_ID", server_.key());
    set("AWS_SECRET_ACCESS_KEY", server_.secret());
    set("AWS_REGION", "us-east-1");
  }
  void TearDown() override {
    for (const char* name : {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID",
                             "AWS_SECRET_ACCESS_KEY", "AWS_REGION"}) {
      set(name, "");
    }
  }
  Server server_{"s3_server.py"};
};

TEST_F(S3, ReadsWritesAndLists) {
  expect_file_system(FileSystem::open("s3://corpus/below/here").value(), "s3://corpus/below/here");
  // The same bucket by what the address says alone.
  set("AWS_ENDPOINT_URL", ""), set("AWS_ACCESS_KEY_ID", ""), set("AWS_REGION", "");
  const FileSystem fs = FileSystem::open(fmt::format("s3://{}:{}@corpus?scheme=http&endpoint_override={}",
                                                     server_.key(), server_.secret(), server_.host()))
                            .value();
  EXPECT_EQ(fs.list("below")->size(), 2u);
  // One object as the root.
  set("AWS_ENDPOINT_URL_S3", server_.url()), set("AWS_ACCESS_KEY_ID", server_.key());
  const FileSystem one = FileSystem::open("s3://corpus/below/here/a/large.bin").value();
  ASSERT_EQ(one.list()->size(), 1u);
  EXPECT_EQ(one.list()->at(0).path, "");
  EXPECT_EQ(one.read("")->size(), one.list()->at(0).size_bytes);
}

TEST_F(S3, WrongKeysAreDeniedAndNotRepeated) {
  const auto expect_denied = [&](const std::string& uri, const std::string& secret) {
    const FileSystem fs = FileSystem::open(uri).value();
    for (const Error& error : {fs.list().error(), fs.read("x.txt").error(), fs.stat("x.txt").error(),
                               fs.write("x.txt", "x").error()}) {
      EXPECT_EQ(error.code, ErrorCode::kDenied) << error.message;
      EXPECT_THAT(error.message, AllOf(HasSubstr("s3://corpus"), HasSubstr("AWS_ACCESS_KEY_ID")));
      EXPECT_THAT(error.message, Not(HasSubstr(secret)));
    }
  };
  set("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-this-key");
  expect_denied("s3://corpus/raw", "not-the-secret");
  set("AWS_ACCESS_KEY_ID", "AKIANOBODY");
  expect_denied("s3://corpus/raw", "not-the-secret");
  expect_denied("s3://AKIANOBODY:in-the-address@corpus/raw", "in-the-address");
  const Error malformed = FileSystem::open("s3://AKIANOBODY:in-the-address@corpus/raw?nosuch=1").error();
  EXPECT_EQ(malformed.code, ErrorCode::kInvalid);
  EXPECT_THAT(malformed.message, AllOf(HasSubstr("nosuch"), Not(HasSubstr("in-the-address"))));
  const Error unparsed = FileSystem::open("s3://AKIANOBODY:in-the-address@corpus/ra w%zz").error();
  EXPECT_THAT(unparsed.message, Not(HasSubstr("in-the-address")));
  set("AWS_ENDPOINT_URL", "not an address");
  EXPECT_THAT(FileSystem::open("s3://corpus/raw").error().message, HasSubstr("http://host:port"));
}

TEST_F(S3, AServerThatIsGoneOrSilentEndsInAClearErrorInTime) {
  const FileSystem fs = FileSystem::open("s3://corpus/raw", {.timeout_ms = 5000}).value();
  ASSERT_TRUE(fs.write("x.txt", "hello").ok());
  const auto expect_unavailable = [&](const auto& call, double most_s) {
    const Stopwatch clock;
    const auto result = call();
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kUnavailable) << result.error().message;
    EXPECT_THAT(result.error().message, AllOf(HasSubstr(server_.host()), HasSubstr("is the server up")));
    EXPECT_THAT(result.error().message, Not(HasSubstr(server_.secret())));
    EXPECT_LT(clock.seconds(), most_s);
  };
  server_.signal(SIGSTOP);  // accepts and never answers
  expect_unavailable([&] { return fs.read("x.txt"); }, 12);
  expect_unavailable([&] { return fs.write("y.txt", "y"); }, 12);
  server_.signal(SIGCONT);
  EXPECT_EQ(fs.read("x.txt").value(), "hello");
  server_.kill();
  expect_unavailable([&] { return fs.read("x.txt"); }, 6);
  expect_unavailable([&] { return fs.list(); }, 6);
  expect_unavailable([&] { return fs.write("z.txt", "z"); }, 6);
}

std::string paragraph(Philox& rng) {
  static const char* const kWords[] = {"wheel", "river",  "the",     "engine", "of",   "winter",
                                       "and",   "letter", "garden",  "to",     "with", "small",
                                       "that",  "north",  "carries", "opens"};
  std::string text;
  for (int i = 0; i < 80; ++i) {
    if (i > 0) text += i % 11 == 0 ? ". " : " ";
    text += kWords[rng.below(16)];
    if (rng.below(3) == 0) text += std::to_string(rng.below(1000));
  }
  return text + ".";
}

RunOutput flywheel(const std::vector<std::string>& arguments, const std::string& home) {
  std::vector<std::string> command = {env::get("FLYWHEEL_PROGRAM")};
  command.insert(command.end(), arguments.begin(), arguments.end());
  const RunOutput output = run_process(command, {.process = {.env = {{"FLYWHEEL_HOME", home}}},
                                                 .deadline = Deadline::after_ms(120'000)})
                               .value();
  // What Arrow says at exit when S3 was left open: it then uses memory that is freed.
  EXPECT_THAT(output.stderr_text, Not(HasSubstr("FinalizeS3")));
  EXPECT_LT(output.exit_code, 128) << output.stderr_text;  // no signal
  return output;
}

// documents.jsonl without what names the place: ids are hashes of it.
std::vector<std::string> texts_of(const std::string& output) {
  std::vector<std::string> texts;
  std::string rest = read_file(output + "/documents.jsonl").value();
  for (size_t at = 0, end; (end = rest.find('\n', at)) != std::string::npos; at = end + 1) {
    texts.push_back(parse_json(std::string_view(rest).substr(at, end - at)).value()["text"]);
  }
  return texts;
}

TEST_F(S3, PrepareGivesTheSameBytesAsFromLocalFiles) {
  TempFolder folder;
  Philox rng(5);
  const FileSystem local = FileSystem::open(folder / "raw").value();
  std::string lines;
  for (int i = 0; i < 200; ++i) lines += Json({{"text", paragraph(rng)}}).dump() + "\n";
  lines += "{\"text\": broken\n";
  local.write("lines.jsonl", lines).value();
  local
      .write("pages/one.html",
             "<html><body><main><h1>One</h1><p>" + paragraph(rng) + "</p></main></body></html>")
      .value();
  local.write("pages/two.txt", paragraph(rng)).value();
  // Some of the lines as Parquet too, as an earlier run leaves it.
  const std::vector<std::string> common = {"--set", "tokenizer.vocab_size=400", "--set",
                                           "quality.gopher_repetition.enabled=false"};
  const auto prepare = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"data", "prepare", "--json"});
    arguments.insert(arguments.end(), common.begin(), common.end());
    return flywheel(arguments, folder / "home");
  };
  const RunOutput first = prepare({"--input", folder / "raw/lines.jsonl", "--output", folder / "seed",
                                   "--set", "parquet=true", "--no-store"});
  ASSERT_EQ(first.exit_code, 0) << first.stderr_text;
  local.write("more/seed.parquet", read_file(folder / "seed/documents.parquet").value()).value();
  write_file(folder / "raw/lines.jsonl",
             lines.substr(lines.size() / 2 + lines.substr(lines.size() / 2).find('\n') + 1))
      .value();

  const FileSystem remote = FileSystem::open("s3://corpus/raw").value();
  const std::vector<FileEntry> entries = local.list().value();
  for (const FileEntry& entry : entries) {
    remote.write(entry.path, local.read(entry.path).value()).value();
  }
  const RunOutput here = prepare({"--input", folder / "raw", "--output", folder / "here"});
  ASSERT_EQ(here.exit_code, 0) << here.stderr_text;
  const RunOutput there = prepare({"--input", "s3://corpus/raw", "--output", folder / "there"});
  ASSERT_EQ(there.exit_code, 0) << there.stderr_text;
  EXPECT_EQ(texts_of(folder / "here"), texts_of(folder / "there"));
  EXPECT_GT(texts_of(folder / "here").size(), 150u);
  for (const std::string file : {"tokenizer/tokenizer.json", "shards/train/manifest.json",
                                 "shards/train/shard-00000.tokens", "shards/validation/manifest.json"}) {
    EXPECT_TRUE(read_file(folder / ("here/" + file)).value() == read_file(folder / ("there/" + file)).value())
        << file;
  }
  EXPECT_THAT(read_file(folder / "there/quarantined.jsonl").value(),
              AllOf(HasSubstr("s3://corpus/raw/lines.jsonl"), HasSubstr("\"place\":\"line ")));
  // What was fetched is not kept.
  EXPECT_FALSE(path_exists(folder / "there/stages/fetched"));
  // Unchanged objects: nothing is done again. One object and a pattern are inputs too.
  const RunOutput again = prepare({"--input", "s3://corpus/raw", "--output", folder / "there"});
  const Json report = parse_json(again.stdout_text).value();
  for (const Json& stage : report["stages"]) EXPECT_TRUE(stage["reused"].get<bool>());
  EXPECT_EQ(prepare({"--input", "s3://corpus/raw/lines.jsonl", "--output", folder / "one"}).exit_code, 0);
  const RunOutput pattern =
      prepare({"--input", "s3://corpus/raw/*/*.parquet", "--output", folder / "pattern"});
  ASSERT_EQ(pattern.exit_code, 0) << pattern.stderr_text;
  EXPECT_EQ(parse_json(pattern.stdout_text).value()["files"], 1);

  // Keys in the address are stored and shown nowhere.
  set("AWS_ACCESS_KEY_ID", ""), set("AWS_SECRET_ACCESS_KEY", "");
  const std::string secret = server_.secret();
  const RunOutput keyed = prepare(
      {"--input", fmt::format("s3://{}:{}@corpus/raw", server_.key(), secret), "--output", folder / "keyed"});
  ASSERT_EQ(keyed.exit_code, 0) << keyed.stderr_text;
  EXPECT_EQ(texts_of(folder / "here"), texts_of(folder / "keyed"));
  const RunOutput found = run_process({"grep", "-rlF", secret, folder.path()}).value();
  EXPECT_EQ(found.stdout_text, "");
  EXPECT_THAT(keyed.stdout_text + keyed.stderr_text, Not(HasSubstr(secret)));
  set("AWS_ACCESS_KEY_ID", server_.key()), set("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-this-key");
  const RunOutput denied = prepare({"--input", "s3://corpus/raw", "--output", folder / "denied"});
  EXPECT_EQ(denied.exit_code, 2);
  EXPECT_THAT(denied.stderr_text, AllOf(HasSubstr("AWS_ACCESS_KEY_ID"), Not(HasSubstr("not-the-secret"))));
  server_.kill();
  const RunOutput gone = prepare({"--input", "s3://corpus/raw", "--output", folder / "gone"});
  EXPECT_EQ(gone.exit_code, 1);  // the machine's fault, not the command's
  EXPECT_THAT(gone.stderr_text, HasSubstr("is the server up"));
}

TEST(Gcs, ReadsWritesListsAndGivesUp) {
  Server server("gcs_server.py");
  set("STORAGE_EMULATOR_HOST", server.url());
  expect_file_system(FileSystem::open("gs://corpus/below/here").value(), "gs://corpus/below/here");
  const FileSystem fs = FileSystem::open("gs://corpus", {.timeout_ms = 2000}).value();
  EXPECT_EQ(fs.list("below")->size(), 2u);
  server.kill();
  const Stopwatch clock;
  const Error error = fs.read("below/here/a/large.bin").error();
  EXPECT_EQ(error.code, ErrorCode::kUnavailable) << error.message;
  EXPECT_THAT(error.message, AllOf(HasSubstr(server.host()), HasSubstr("STORAGE_EMULATOR_HOST")));
  EXPECT_LT(clock.seconds(), 10);
  set("STORAGE_EMULATOR_HOST", "");
}

TEST(Hdfs, SaysWhatIsMissing) {
  set("JAVA_HOME", "/nonexistent"), set("HADOOP_HOME", "/nonexistent");
  const Error error = FileSystem::open("hdfs://namenode:8020/corpus").error();
  EXPECT_EQ(error.code, ErrorCode::kUnavailable) << error.message;
  EXPECT_THAT(error.message, AllOf(HasSubstr("hdfs://namenode:8020/corpus"), HasSubstr("JAVA_HOME"),
                                   HasSubstr("HADOOP_HOME"), HasSubstr("CLASSPATH")));
  EXPECT_EQ(error.message.find('\n'), std::string::npos);
}

}  // namespace
}  // namespace flywheel

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  const flywheel::ObjectStoreSession session;
  return RUN_ALL_TESTS();
}
