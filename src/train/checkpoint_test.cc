// A checkpoint that several ranks write: whole or not there, whoever is cut short or finds no room, and
// whatever an earlier attempt left in its folder.
#include "train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <future>
#include <new>
#include <thread>

#include "base/deadline.h"
#include "base/file.h"
#include "model/verify_weights.h"
#include "train/adapter_config.h"
#include "train/checkpoint_writer.h"
#include "train/state_for_tests.h"
#include "train/whole_state.h"

namespace flywheel::train {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Rank 0 waits five minutes for a part of which it hears nothing.
constexpr double kAtOnceSeconds = 60;

// Three data ranks that share the state out.
struct Ranks {
  TrainConfig config = config_on_mesh({.data = 3, .zero = 1}, OptimizerType::kAdamW);
  Layout layout = make_layout(config, small_decoder()).value();
  TrainerSnapshot state = random_state(config.optimizer, small_decoder());

  Result<void> shard(const Save& save, int rank) const {
    return write_shard(save, rank, part_of(state, config, layout, rank));
  }
  Result<void> first(const Save& save) const {
    return write_checkpoint(save, source_of(config), 1.5,
                            std::make_shared<TrainerSnapshot>(part_of(state, config, layout, 0)));
  }
  Result<void> all(const Save& save) const {
    RETURN_IF_ERROR(shard(save, 2));
    RETURN_IF_ERROR(shard(save, 1));
    return first(save);
  }
};

// The names of all files in a folder, by name.
std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file())
      names.push_back(std::filesystem::relative(entry.path(), folder).generic_string());
  }
  std::ranges::sort(names);
  return names;
}

const auto kWhole =
    ElementsAre("checkpoint.json", "config.yaml", "model/config.json", "model/model.safetensors",
                "shards/4/rank-00000.state", "shards/4/rank-00001.state", "shards/4/rank-00002.state");

TEST(Checkpoint, RanksWriteTheirPartsInAnyOrder) {
  const TempFolder folder;
  const Ranks ranks;
  const Save save{.folder = folder / "step", .number = 4};
  std::jthread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_TRUE(ranks.shard(save, 1).ok());
  });
  ASSERT_TRUE(ranks.shard(save, 2).ok());
  const auto written = ranks.first(save);
  ASSERT_TRUE(written.ok()) << written.error().message;
  EXPECT_THAT(files_in(save.folder), kWhole);

  const CheckpointInfo info = read_checkpoint_info(save.folder).value();
  EXPECT_EQ(info.step, 12);
  EXPECT_EQ(info.loss, 1.5);
  EXPECT_EQ(info.sha256, ranks.state.sha256());
  EXPECT_THAT(info.shards, ElementsAre(shard_name(4, 0), shard_name(4, 1), shard_name(4, 2)));
  EXPECT_THAT(model::verify_weights(save.folder).value().problems, testing::IsEmpty());
  // The model is the one that a single worker would have written, byte for byte.
  ASSERT_TRUE(
      export_model(folder / "model", small_decoder(), kernels::DType::kF32, ranks.state.weights).ok());
  for (const char* name : {"config.json", "model.safetensors"})
    EXPECT_EQ(read_file(save.folder + "/model/" + name).value(), read_file(folder / "model/" + name).value());
  // One that is damaged is named, and nobody goes on from it.
  const std::string shard = save.folder + "/" + shard_name(4, 1);
  std::string bytes = read_file(shard).value();
  bytes[bytes.size() - 5] ^= 1;
  ASSERT_TRUE(write_file(shard, bytes).ok());
  EXPECT_THAT(model::verify_weights(save.folder).value().problems, ElementsAre(HasSubstr(shard_name(4, 1))));
  WholeState whole = WholeState::open(save.folder).value();
  EXPECT_THAT(whole.sha256().error().message, HasSubstr(shard_name(4, 1)));
}

// The disk takes its time with a part whose bytes others can read already: the model is made of it meanwhile,
// and nothing is a checkpoint before the disk is done. Where it fails then, there is none.
TEST(Checkpoint, APartIsReadWhileItComesToDisk) {
  struct Disk {
    std::string folder;
    bool fails = false, had_model = false, had_mark = false;
  };
  static Disk disk;
  const Ranks ranks;
  for (const bool fails : {false, true}) {
    const TempFolder folder;
    const Save save{.folder = folder / "step", .number = 4};
    disk = {.folder = save.folder, .fails = fails};
    ASSERT_TRUE(ranks.shard(save, 2).ok());
    file_fault_for_tests = [](FileAct act, const std::string& path) -> Result<void> {
      if (act != FileAct::kSync || !path.ends_with("rank-00001.state")) return {};
      const Deadline deadline = Deadline::after_ms(static_cast<int64_t>(kAtOnceSeconds * 1000));
      while (!path_exists(disk.folder + "/config.yaml") && !deadline.expired())
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      std::this_thread::sleep_for(std::chrono::milliseconds(50));  // for a mark that would come too early
      disk.had_model = path_exists(disk.folder + "/model/model.safetensors");
      disk.had_mark = path_exists(disk.folder + "/checkpoint.json");
      return disk.fails ? make_error(ErrorCode::kIo, "{}: as asked", path) : Result<void>();
    };
    std::future<Result<void>> slow = std::async(std::launch::async, [&] { return ranks.shard(save, 1); });
    const Result<void> written = ranks.first(save);
    EXPECT_EQ(slow.get().ok(), !fails);
    file_fault_for_tests = nullptr;
    EXPECT_TRUE(disk.had_model) << "rank 0 has waited for the disk";
    EXPECT_FALSE(disk.had_mark);
    if (fails) {
      ASSERT_FALSE(written.ok());
      EXPECT_THAT(written.error().message, HasSubstr("as asked"));
      EXPECT_FALSE(path_exists(save.folder)) << "what was written of it is left";
    } else {
      ASSERT_TRUE(written.ok()) << written.error().message;
      EXPECT_THAT(files_in(save.folder), kWhole);
      EXPECT_EQ(WholeState::open(save.folder).value().sha256().value(), ranks.state.sha256());
    }
  }
}

// As on a file system of several hosts that shows a part before all its bytes have come.
TEST(Checkpoint, APartThatIsNotWholeYetIsReadFromTheDisk) {
  const TempFolder folder;
  const Ranks ranks;
  const Save save{.folder = folder / "step", .number = 4};
  ASSERT_TRUE(ranks.shard(save, 2).ok());
  const std::string whole = part_of(ranks.state, ranks.config, ranks.layout, 1).bytes();
  ASSERT_TRUE(write_file(save.folder + "/" + shard_name(4, 1) + ".written",
                         whole.substr(0, whole.size() / 2) + std::string(whole.size() / 2, '\0'))
                  .ok());
  std::jthread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_TRUE(ranks.shard(save, 1).ok());
  });
  const auto written = ranks.first(save);
  ASSERT_TRUE(written.ok()) << written.error().message;
  EXPECT_THAT(files_in(save.folder), kWhole);
  EXPECT_EQ(read_checkpoint_info(save.folder).value().sha256, ranks.state.sha256());
}

// Killed between any two files there is no checkpoint; a replay makes it, and leaves no trace of the kill.
TEST(Checkpoint, CutShortItIsNotThereUntilAReplayHasWrittenItWhole) {
  const Ranks ranks;
  for (int cut = 0; cut < 4; ++cut) {
    const TempFolder folder;
    const Save save{.folder = folder / "step", .number = 4};
    if (cut >= 1) {
      ASSERT_TRUE(ranks.shard(save, 1).ok());
    }
    if (cut >= 2) {
      ASSERT_TRUE(ranks.shard(save, 0).ok());
    }
    if (cut >= 3) {
      ASSERT_TRUE(ranks.shard(save, 2).ok());
      ASSERT_TRUE(write_file(save.folder + "/model/model.safetensors.tmp.7.1", "the beginning").ok());
      ASSERT_TRUE(write_file(save.folder + "/checkpoint.json.tmp.7.2", "{").ok());
    }
    ASSERT_TRUE(write_file(save.folder + "/shards/4/rank-00002.state.tmp.8.0", "the beginning").ok());
    EXPECT_EQ(read_checkpoint_info(save.folder).error().code, ErrorCode::kNotFound) << cut;
    const auto written = ranks.all(save);
    ASSERT_TRUE(written.ok()) << written.error().message;
    EXPECT_EQ(read_checkpoint_info(save.folder).value().sha256, ranks.state.sha256());
    EXPECT_THAT(files_in(save.folder), kWhole) << cut;
  }
}

TEST(Checkpoint, AReplayWritesNothing) {
  const TempFolder folder;
  const Ranks ranks;
  const Save save{.folder = folder / "step", .number = 4};
  ASSERT_TRUE(ranks.all(save).ok());
  const auto times = [&] {
    std::vector<std::filesystem::file_time_type> of_files;
    for (const std::string& name : files_in(save.folder))
      of_files.push_back(std::filesystem::last_write_time(save.folder + "/" + name));
    return of_files;
  };
  const auto before = times();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  ASSERT_TRUE(ranks.all(save).ok());
  EXPECT_EQ(times(), before);
  // The same state by another save of the run, as when the log of the first one is gone.
  ASSERT_TRUE(ranks.all({.folder = save.folder, .number = 5}).ok());
  EXPECT_EQ(times(), before);
  EXPECT_THAT(files_in(save.folder), kWhole);
}

// Another attempt at the step with other weights, given up half way or complete: nothing of it comes in.
TEST(Checkpoint, ShardsOfAnotherAttemptAreNotTakenForItsOwn) {
  const Ranks other, ranks;
  for (const bool complete : {false, true}) {
    const TempFolder folder;
    const Save before{.folder = folder / "step", .number = 3}, save{.folder = before.folder, .number = 4};
    ASSERT_TRUE(complete ? other.all(before).ok() : other.shard(before, 1).ok());
    std::jthread late([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      EXPECT_TRUE(ranks.shard(save, 1).ok());
    });
    ASSERT_TRUE(ranks.shard(save, 2).ok());
    ASSERT_TRUE(ranks.first(save).ok());
    EXPECT_EQ(read_checkpoint_info(save.folder).value().sha256, ranks.state.sha256());
    EXPECT_THAT(files_in(save.folder), kWhole);
  }
}

// A replay of two saves of one step, as of a last checkpoint that was asked for again: a rank may be ahead.
TEST(Checkpoint, ALaterSaveThatHasBegunIsLeftAlone) {
  const Ranks ranks;
  for (const bool fails : {false, true}) {
    const TempFolder folder;
    const Save before{.folder = folder / "step", .number = 3}, save{.folder = before.folder, .number = 4};
    ASSERT_TRUE(ranks.shard(before, 1).ok());
    ASSERT_TRUE(ranks.shard(save, 1).ok());
    ASSERT_TRUE(ranks.shard(before, 2).ok());
    if (fails) {
      const std::string lost = before.folder + "/" + shard_name(3, 2);
      ASSERT_TRUE(remove_all(lost).ok());
      ASSERT_TRUE(write_file(lost + ".failed", "no room").ok());
    }
    EXPECT_EQ(ranks.first(before).ok(), !fails);
    EXPECT_EQ(read_checkpoint_info(save.folder).ok(), !fails);
    EXPECT_TRUE(path_exists(save.folder + "/" + shard_name(4, 1)));
    ASSERT_TRUE(ranks.shard(save, 2).ok());
    const auto written = ranks.first(save);
    ASSERT_TRUE(written.ok()) << written.error().message;
    const CheckpointInfo info = read_checkpoint_info(save.folder).value();
    EXPECT_EQ(info.sha256, ranks.state.sha256());
    EXPECT_EQ(info.shards.at(0), shard_name(fails ? 4 : 3, 0)) << "the same content is left as it is";
    EXPECT_EQ(list_folder(save.folder + "/shards").value(), std::vector<std::string>{fails ? "4" : "3"});
  }
}

// No file may grow beyond this while one is alive: what is written fails then, as it does without room.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes = 1000) {
    ::signal(SIGXFSZ, SIG_IGN);
    EXPECT_EQ(::getrlimit(RLIMIT_FSIZE, &before_), 0);
    const rlimit full{bytes, before_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &full), 0);
  }
  ~FullDisk() { ::setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST(Checkpoint, ADiskThatIsFullForOneRankCostsThisOneAndNoMore) {
  const TempFolder folder;
  const Ranks ranks;
  const Save older{.folder = folder / "older", .number = 1}, save{.folder = folder / "step", .number = 4};
  ASSERT_TRUE(ranks.all(older).ok());
  for (const int unlucky : {1, 0}) {
    Result<void> written;
    if (unlucky == 1) {
      ASSERT_TRUE(ranks.shard(save, 2).ok());
      {
        const FullDisk full;
        EXPECT_FALSE(ranks.shard(save, 1).ok());
      }
      written = ranks.first(save);
    } else {
      ASSERT_TRUE(ranks.shard(save, 2).ok());
      ASSERT_TRUE(ranks.shard(save, 1).ok());
      const FullDisk full;
      written = ranks.first(save);
    }
    ASSERT_FALSE(written.ok());
    EXPECT_EQ(written.error().code, ErrorCode::kIo);
    EXPECT_THAT(written.error().message, HasSubstr(shard_name(4, unlucky)));
    EXPECT_FALSE(path_exists(save.folder)) << "what was written of it is left";
  }
  EXPECT_EQ(read_checkpoint_info(older.folder).value().sha256, ranks.state.sha256());
  ASSERT_TRUE(ranks.all(save).ok());  // there is room again
  EXPECT_THAT(files_in(save.folder), kWhole);
}

// Not a byte is left, also not for the reason.
TEST(Checkpoint, ADiskWithoutRoomForTheReasonStillTellsRank0) {
  const TempFolder folder;
  const Ranks ranks;
  const Save save{.folder = folder / "step", .number = 4};
  ASSERT_TRUE(ranks.shard(save, 2).ok());
  {
    const FullDisk full(0);
    EXPECT_FALSE(ranks.shard(save, 1).ok());
  }
  const Stopwatch clock;
  const auto written = ranks.first(save);
  EXPECT_LT(clock.seconds(), kAtOnceSeconds);
  ASSERT_FALSE(written.ok());
  EXPECT_THAT(written.error().message,
              testing::AllOf(HasSubstr(shard_name(4, 1)), HasSubstr("no room to say why")));
  EXPECT_FALSE(path_exists(save.folder));
}

// The first of all, which cannot make the folder; those after it can.
TEST(Checkpoint, AFolderThatOneRankCannotMakeIsSeenByRank0AtOnce) {
  const TempFolder folder;
  const Ranks ranks;
  const Save save{.folder = folder / "step", .number = 4};
  file_fault_for_tests = [](FileAct act, const std::string& path) -> Result<void> {
    if (act != FileAct::kMakeFolders) return {};
    file_fault_for_tests = nullptr;  // once
    return make_error(ErrorCode::kIo, "cannot make folder {}: as asked", path);
  };
  const auto refused = ranks.shard(save, 1);
  file_fault_for_tests = nullptr;
  EXPECT_FALSE(refused.ok());
  ASSERT_TRUE(ranks.shard(save, 2).ok());
  const Stopwatch clock;
  const auto written = ranks.first(save);
  EXPECT_LT(clock.seconds(), kAtOnceSeconds);
  ASSERT_FALSE(written.ok());
  EXPECT_THAT(written.error().message, HasSubstr("as asked"));
  EXPECT_FALSE(path_exists(save.folder));
}

// What becomes of a writer that throws, as one without memory does, on a rank of the mesh.
Result<CheckpointInfo> throws_on(const Ranks& ranks, const Save& save, int rank) {
  CheckpointWriter writer;
  writer.begin(
      save.folder, []() -> Result<void> { throw std::bad_alloc(); },
      [&](const Error& why) { give_up(save, source_of(ranks.config), rank, why); });
  return writer.wait(save.folder, {.deadline = Deadline::after_ms(100'000), .aborted = [] { return false; }});
}

TEST(Checkpoint, AWriterThatThrowsIsSeenByRank0AtOnce) {
  const TempFolder folder;
  const Ranks ranks;
  const Save save{.folder = folder / "step", .number = 4};
  ASSERT_TRUE(ranks.shard(save, 2).ok());
  const auto thrown = throws_on(ranks, save, 1);
  ASSERT_FALSE(thrown.ok());
  EXPECT_THAT(thrown.error().message, HasSubstr("its writer threw"));
  const Stopwatch clock;
  const auto written = ranks.first(save);
  EXPECT_LT(clock.seconds(), kAtOnceSeconds);
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(written.error().code, ErrorCode::kIo);
  EXPECT_THAT(written.error().message,
              testing::AllOf(HasSubstr(shard_name(4, 1)), HasSubstr("its writer threw: std::bad_alloc")));
  EXPECT_FALSE(path_exists(save.folder)) << "what was written of it is left";
  ASSERT_TRUE(ranks.all(save).ok());  // the next attempt
  EXPECT_THAT(files_in(save.folder), kWhole);
}

// Nothing is left of it, also of what others were still writing.
TEST(Checkpoint, AWriterOfRank0ThatThrowsLeavesNothing) {
  const TempFolder folder;
  const Ranks ranks;
  const Save save{.folder = folder / "step", .number = 4};
  ASSERT_TRUE(ranks.shard(save, 2).ok());
  std::jthread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    (void)ranks.shard(save, 1);  // its folder may be gone before it is synced
  });
  const auto thrown = throws_on(ranks, save, 0);
  late.join();
  ASSERT_FALSE(thrown.ok());
  EXPECT_EQ(thrown.error().code, ErrorCode::kUnavailable);
  EXPECT_FALSE(path_exists(save.folder));
}

// As rank 0 does where the worker of another part is lost: it must go back with it, and waits for nobody.
TEST(Checkpoint, WhoWaitsForAWriterGivesUpWhenTheCallIsAborted) {
  CheckpointWriter writer;
  std::promise<void> goes_on;
  writer.begin(
      "nowhere",
      [over = goes_on.get_future().share()]() -> Result<void> {
        over.wait();
        return {};
      },
      [](const Error&) {});
  const auto wait = [&](int64_t ms, bool aborted) {
    const CheckpointWriter::Patience patience{Deadline::after_ms(ms), [=] { return aborted; }};
    const auto idle = writer.wait_until_idle(patience);
    const auto info = writer.wait("nowhere", patience);
    EXPECT_EQ(idle.error().code, info.error().code);
    return info.error().code;
  };
  const Stopwatch clock;
  EXPECT_EQ(wait(600'000, true), ErrorCode::kAborted);
  EXPECT_LT(clock.seconds(), kAtOnceSeconds);
  EXPECT_EQ(wait(30, false), ErrorCode::kDeadline);
  goes_on.set_value();
  const CheckpointWriter::Patience patience{Deadline::after_ms(100'000), [] { return false; }};
  EXPECT_TRUE(writer.wait_until_idle(patience).ok());
  EXPECT_EQ(writer.wait("nowhere", patience).error().code, ErrorCode::kNotFound) << "nobody has written it";
}

// What one mesh wrote another takes: the same bytes of each part, as out of the whole.
TEST(Checkpoint, AnotherMeshTakesItsPartBitForBit) {
  const TempFolder folder;
  const Ranks ranks;
  const Save save{.folder = folder / "step", .number = 4};
  ASSERT_TRUE(ranks.all(save).ok());
  for (const MeshConfig& mesh :
       {MeshConfig{}, MeshConfig{.tensor = 2}, MeshConfig{.data = 2, .pipeline = 2, .zero = 1},
        MeshConfig{.data = 2, .tensor = 2, .zero = 3}}) {
    const TrainConfig config = config_on_mesh(mesh, OptimizerType::kAdamW);
    const Layout layout = make_layout(config, small_decoder()).value();
    for (int rank = 0; rank < layout.shape.size(); ++rank) {
      const MeshPlace place = layout.place(rank);
      const LocalDecoder local = layout.local(place);
      const Shares shares(local, layout.share_of(place));
      const TrainerSnapshot want = part_of(ranks.state, config, layout, rank);
      TrainerSnapshot got = empty_snapshot(config.optimizer, shares.held());
      got.weights.assign(static_cast<size_t>(shares.held_count()), 0.0f);
      std::vector<StateBuffer> buffers;
      for (auto& buffer : got.state) buffers.push_back({buffer.name, buffer.bytes});
      WholeState whole = WholeState::open(save.folder).value();
      ASSERT_TRUE(take_part(config.optimizer, local, shares.held(), whole, got.weights, buffers).ok());
      EXPECT_EQ(got.weights, want.weights) << rank;
      for (size_t b = 0; b < want.state.size(); ++b) EXPECT_EQ(got.state[b].bytes, want.state[b].bytes);
    }
  }
}

void expect_same_adapter_on_meshes(const std::string& target) {
  const auto config_on = [&](const MeshConfig& mesh) {
    TrainConfig config = config_on_mesh(mesh, OptimizerType::kAdamW);
    config.model.from = "/base";
    config.adapter = {.rank = 4, .targets = {target}};
    return config;
  };
  const model::Decoder decoder = decoder_of(config_on({}), small_decoder().config);
  const TrainerSnapshot state = random_state(config_on({}).optimizer, decoder);
  std::string alone, alone_config;
  for (const MeshConfig& mesh : {MeshConfig{}, MeshConfig{.tensor = 4}, MeshConfig{.pipeline = 3},
                                 MeshConfig{.data = 2, .tensor = 2, .pipeline = 2, .zero = 1}}) {
    const TempFolder folder;
    const Save save{.folder = folder / "step", .number = 4};
    const TrainConfig config = config_on(mesh);
    const Layout layout = make_layout(config, decoder).value();
    for (const int rank : layout.holders()) {
      if (rank == 0) continue;
      ASSERT_TRUE(write_shard(save, rank, part_of(state, config, layout, rank)).ok());
    }
    const auto written = write_checkpoint(
        save, source_of(config), 1.5, std::make_shared<TrainerSnapshot>(part_of(state, config, layout, 0)));
    ASSERT_TRUE(written.ok()) << written.error().message;
    EXPECT_EQ(read_checkpoint_info(save.folder).value().sha256, state.sha256());
    EXPECT_FALSE(path_exists(save.folder + "/model/model.safetensors"));
    const std::string weights = read_file(save.folder + "/model/adapter_model.safetensors").value();
    const std::string about = read_file(save.folder + "/model/adapter_config.json").value();
    if (alone.empty()) alone = weights, alone_config = about;
    EXPECT_TRUE(weights == alone) << mesh.tensor;
    EXPECT_EQ(about, alone_config);
  }
}

// In PEFT's files, whole: the same bytes from a mesh that cuts it as from one worker.
TEST(Checkpoint, AnAdapterIsWrittenAsOneWorkerWritesIt) {
  for (const char* target :
       {"all-linear", "layers.0.mlp.down_proj"}) {  // most stages have none of the latter
    SCOPED_TRACE(target);
    expect_same_adapter_on_meshes(target);
  }
}

}  // namespace
}  // namespace flywheel::train
