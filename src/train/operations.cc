#include "train/operations.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <mutex>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "runtime/operation.h"
#include "train/checkpoint_writer.h"
#include "train/network.h"
#include "train/rounding.h"
#include "train/trainer.h"

namespace flywheel::train {

using runtime::Call;
using runtime::Communicator;
using runtime::Kind;

const char* const kLibtorch = "train.libtorch";
const char* const kCreate = "train.create";
const char* const kStep = "train.step";
const char* const kRewind = "train.rewind";
const char* const kEvaluate = "train.evaluate";
const char* const kSave = "train.save";
const char* const kSaved = "train.saved";
const char* const kTrace = "train.trace";
const char* const kDigest = "train.digest";

std::string TrainSetup::to_json() const {
  return Json{{"config", config},       {"decoder", decoder}, {"data", data},   {"validation", validation},
              {"tokenizer", tokenizer}, {"weights", weights}, {"state", state}, {"threads", threads}}
      .dump();
}

Result<TrainSetup> TrainSetup::from_json(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, parse_json(text));
  const auto get = [&](const char* key) { return json.value(key, std::string()); };
  return TrainSetup{.config = get("config"),
                    .decoder = get("decoder"),
                    .data = get("data"),
                    .validation = get("validation"),
                    .tokenizer = get("tokenizer"),
                    .weights = get("weights"),
                    .state = get("state"),
                    .threads = json.value("threads", int64_t{1})};
}

std::string Rewind::to_json() const {
  return Json{{"checkpoint", checkpoint}, {"batch", batch}, {"events", events}}.dump();
}

Result<Rewind> Rewind::from_json(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, parse_json(text));
  return Rewind{.checkpoint = json.value("checkpoint", std::string()),
                .batch = json.value("batch", int64_t{0}),
                .events = json.value("events", int64_t{0})};
}

namespace {

// JSON has no number that is not finite: null, which alone an anomaly may have.
Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json();
}
double number_of(const Json& json) {
  return json.is_null() ? std::numeric_limits<double>::quiet_NaN() : json.get<double>();
}
Anomaly anomaly_of(const Json& json) {
  const std::string name = text_of(json, "anomaly");
  for (const auto& [known, anomaly] : ConfigEnum<Anomaly>::names) {
    if (name == known) return anomaly;
  }
  return Anomaly::kNone;
}

Json to_json(const RouterReport& r) {
  return {{"layers", r.layers},
          {"load", r.load},
          {"imbalance", number(r.imbalance)},
          {"balance_loss", number(r.balance_loss)},
          {"z_loss", number(r.z_loss)},
          {"dropped", r.dropped}};
}

Result<RouterReport> router_from_json(const Json& json) {
  try {
    return RouterReport{.layers = json.at("layers").get<std::vector<int64_t>>(),
                        .load = json.at("load").get<std::vector<std::vector<double>>>(),
                        .imbalance = number_of(json.at("imbalance")),
                        .balance_loss = number_of(json.at("balance_loss")),
                        .z_loss = number_of(json.at("z_loss")),
                        .dropped = json.at("dropped").get<double>()};
  } catch (const Json::exception& error) {
    return make_error(ErrorCode::kCorrupt, "what routers did in a step: {}", error.what());
  }
}

}  // namespace

std::string step_result_to_json(const StepResult& r) {
  Json json = {{"loss", number(r.loss)},
               {"gradient_norm", number(r.gradient_norm)},
               {"lr", r.lr},
               {"tokens", r.tokens},
               {"skipped", r.skipped},
               {"loss_scale", r.loss_scale}};
  if (r.anomaly != Anomaly::kNone)
    json.update({{"anomaly", config_name(r.anomaly)}, {"batch", r.batch}, {"events", r.events}});
  if (r.router.has_value()) json["router"] = to_json(*r.router);
  return json.dump();
}

Result<StepResult> step_result_from_json(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, parse_json(text));
  const Anomaly anomaly = anomaly_of(json);
  for (const char* key : {"loss", "gradient_norm", "lr", "tokens"}) {
    const bool is_there =
        json.contains(key) && (json[key].is_number() || (anomaly == Anomaly::kNan && json[key].is_null()));
    if (!is_there) return make_error(ErrorCode::kCorrupt, "the result of a step has no {}: {}", key, text);
  }
  StepResult result{.loss = number_of(json["loss"]),
                    .gradient_norm = number_of(json["gradient_norm"]),
                    .lr = json.value("lr", 0.0),
                    .tokens = json.value("tokens", int64_t{0}),
                    .skipped = json.value("skipped", false),
                    .loss_scale = json.value("loss_scale", 1.0),
                    .anomaly = anomaly,
                    .batch = json.value("batch", int64_t{0}),
                    .events = json.value("events", int64_t{0})};
  if (json.contains("router")) {
    ASSIGN_OR_RETURN(result.router, router_from_json(json["router"]));
  }
  return result;
}

namespace {

constexpr const char* kState = "trainer";

// Memory of snapshots that nobody holds any more, for the next ones: fresh pages cost more than the copy.
class SnapshotMemory : public std::enable_shared_from_this<SnapshotMemory> {
 public:
  std::shared_ptr<TrainerSnapshot> take() {
    auto snapshot = std::make_unique<TrainerSnapshot>();
    {
      std::scoped_lock lock(mutex_);
      if (!spare_.empty()) {
        snapshot = std::move(spare_.back());
        spare_.pop_back();
      }
    }
    return {snapshot.release(), [memory = shared_from_this()](TrainerSnapshot* used) {
              used->let_go_of_files();
              std::scoped_lock lock(memory->mutex_);
              memory->spare_.emplace_back(used);
            }};
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<TrainerSnapshot>> spare_;
};

// The trainer with its data, as a worker keeps it between commands. Its bytes are the setup and the trainer's
// snapshot, so that a fresh process becomes this one from them.
class WorkerTrainer : public runtime::State {
 public:
  const char* type() const override { return "train.trainer"; }
  runtime::Sharing sharing() const override {
    return layout_.splits_model() ? runtime::Sharing::kPerRank : runtime::Sharing::kReplicated;
  }

  Result<void> open(const std::string& setup_json, int rank) {
    setup_json_ = setup_json;
    rank_ = rank;
    shards_.reset();
    ASSIGN_OR_RETURN(setup_, TrainSetup::from_json(setup_json));
    config_ = parse_config<TrainConfig>("train.create", setup_.config);
    set_compute_threads(static_cast<int>(setup_.threads));
    ASSIGN_OR_RETURN(const Json decoder_json, parse_json(setup_.decoder));
    ASSIGN_OR_RETURN(const model::DecoderConfig decoder, model::decoder_config_from_hf(decoder_json));
    ASSIGN_OR_RETURN(data_, open_data(setup_.data));
    if (!setup_.validation.empty()) {
      ASSIGN_OR_RETURN(validation_, open_data(setup_.validation));
    }
    ASSIGN_OR_RETURN(layout_, make_layout(config_, decoder_of(config_, decoder)));
    return make_trainer();
  }
  Result<void> initialize() {
    if (!setup_.state.empty()) return restore_whole(setup_.state);
    if (!setup_.weights.empty() && !config_.adapter.on()) {
      ASSIGN_OR_RETURN(const auto source, model::open_weights(setup_.weights));
      return trainer_->load(*source);
    }
    trainer_->initialize(config_.seed);
    return {};
  }

  // A checkpoint under way belongs to the state: whoever restores this snapshot finds it written.
  std::function<runtime::Rope()> freeze() override {
    std::shared_ptr<TrainerSnapshot> copy = memory_->take();
    trainer_->snapshot(*copy);
    // Replicas' bytes are equal, and say nothing of the rank.
    return [rank = static_cast<uint64_t>(layout_.splits_model() ? rank_ : 0), setup = setup_json_,
            copy = std::move(copy), writing = CheckpointWriter::of_this_process().last()] {
      if (writing.valid()) writing.wait();
      const uint64_t header[2] = {rank, setup.size()};
      runtime::Rope bytes(std::string(reinterpret_cast<const char*>(header), sizeof header) + setup +
                          copy->header());
      for (const std::string_view buffer : copy->buffers()) bytes.append(buffer, copy);
      return bytes;
    };
  }
  Result<void> restore(std::string_view bytes) override {
    uint64_t header[2] = {};  // rank, bytes of the setup
    if (bytes.size() >= sizeof header) std::memcpy(header, bytes.data(), sizeof header);
    if (bytes.size() < sizeof header || bytes.size() - sizeof header < header[1]) {
      return make_error(ErrorCode::kCorrupt, "a worker's trainer of {} bytes", bytes.size());
    }
    const std::string setup(bytes.substr(sizeof header, header[1]));
    // None: the one before could not be made, as where a disk was full.
    if (setup != setup_json_ || trainer_ == nullptr)
      RETURN_IF_ERROR(open(setup, static_cast<int>(header[0])));
    return trainer_->restore(bytes.substr(sizeof header + header[1]));
  }

  // What a step does is traced beside the state, for the process: no bit of the state depends on it.
  Result<StepResult> step(int64_t step, Links links) {
    if (!config_.trace.traces(step + 1)) return train(step, links);
    Tracer& tracer = Tracer::of_this_process();
    links.tracer = &tracer;
    tracer.begin(step + 1);
    Result<StepResult> result = train(step, links);
    tracer.end();
    return result;
  }
  Result<StepResult> train(int64_t step, const Links& links) {
    if (step != trainer_->next_step()) {
      return make_error(ErrorCode::kInvalid, "asked for step {}, the trainer is at {}", step,
                        trainer_->next_step());
    }
    ASSIGN_OR_RETURN(const data::Batch batch, read_batch(links));
    ASSIGN_OR_RETURN(StepResult result, trainer_->step(batch, links));
    // Every expert of every layer: the log need not keep that of each step.
    const int64_t every = config_.router.load_every_steps;
    if (result.router.has_value() && (every == 0 || (step + 1) % every != 0)) result.router->load.clear();
    return result;
  }
  Result<data::Batch> read_batch(const Links& links) const {
    const TracedSpan span(links.tracer, "read_batch");
    return data_.sampler->batch(trainer_->next_batch(), static_cast<int>(links.batch_rank()),
                                static_cast<int>(links.batch_ranks()));
  }
  // The checkpoint that rank 0 has written may be on its way to the disk once more, where this is a replay.
  Result<void> rewind(const Rewind& to, Links links, const CheckpointWriter::Patience& patience) {
    RETURN_IF_ERROR(CheckpointWriter::of_this_process().wait_until_idle(patience));
    std::array<double, 1> arrived{};
    links.sum(links.all, arrived);
    RETURN_IF_ERROR(links.failed);
    RETURN_IF_ERROR(make_trainer());
    RETURN_IF_ERROR(to.checkpoint.empty() ? initialize() : restore_whole(to.checkpoint + "/trainer.state"));
    trainer_->go_on(to.batch, to.events);
    return {};
  }
  Result<double> evaluate(int64_t sequences, const Links& links) {
    if (validation_.sampler == nullptr)
      return make_error(ErrorCode::kNotFound, "this run has no validation data");
    return trainer_->evaluate(*validation_.sampler, sequences, links);
  }
  // This rank's part of the checkpoint: copied here, written while training goes on.
  void save(const Save& save, double loss, int rank) {
    if (!shards_.has_value() || shards_->rank != rank) find_shards(rank);
    if (!shards_->holds) return;
    std::shared_ptr<TrainerSnapshot> part = saved_memory_->take();
    if (shards_->shares.has_value()) {
      trainer_->snapshot(*shards_->shares, *part);
    } else {
      trainer_->snapshot(*part);
    }
    CheckpointWriter::of_this_process().begin(
        save.folder,
        [save, loss, rank, source = shards_->source, part = std::move(part)]() mutable {
          return rank > 0 ? write_shard(save, rank, *part)
                          : write_checkpoint(save, source, loss, std::move(part));
        },
        [save, rank, source = shards_->source](const Error& why) { give_up(save, source, rank, why); });
  }
  std::string digest() const { return trainer_->sha256(); }

 private:
  // What a rank of the mesh writes of a checkpoint.
  struct Shards {
    int rank = 0;
    bool holds = false;            // a part that no rank before it has
    std::optional<Shares> shares;  // of a state that others have too; none: its whole state
    CheckpointSource source;
  };
  struct Data {
    std::unique_ptr<data::TokenShards> shards;
    std::unique_ptr<data::Sampler> sampler;
  };
  // The rank is the mesh's: the state of any that is alike may have become this one's.
  void find_shards(int rank) {
    Shards& found = shards_.emplace();
    found.rank = rank;
    found.source = {.config = shards_config(config_, layout_.decoder),
                    .decoder = parse_json(setup_.decoder).value(),  // open() has read it
                    .dtype = compute_dtype(config_.precision),
                    .tokenizer_folder = setup_.tokenizer};
    const Layout layout = make_layout(found.source.config, layout_.decoder).value();
    const std::vector<int> holders = layout.holders();
    found.holds = std::ranges::find(holders, rank) != holders.end();
    const MeshPlace place = layout.place(rank);
    if (layout.share.stage != layout_.share.stage)
      found.shares.emplace(layout.local(place), layout.share_of(place));
  }
  // With the frozen weights, which are in no snapshot and no checkpoint.
  Result<void> make_trainer() {
    trainer_.reset();  // its memory first
    if (!config_.adapter.on()) {
      ASSIGN_OR_RETURN(trainer_, train::make_trainer(config_, layout_, layout_.place(rank_), compute_pool()));
      return {};
    }
    auto trainer = std::make_unique<Trainer>(config_, layout_, layout_.place(rank_), compute_pool());
    ASSIGN_OR_RETURN(auto base, model::open_weights(setup_.weights));
    RETURN_IF_ERROR(
        trainer->parameters().load_frozen(std::move(base), config_.adapter.base == AdapterBase::kAsIs));
    trainer_ = std::move(trainer);
    return {};
  }
  // `state`: the trainer.state of a checkpoint, be it in shards.
  Result<void> restore_whole(const std::string& state) {
    ASSIGN_OR_RETURN(WholeState whole, WholeState::open(std::filesystem::path(state).parent_path()));
    return trainer_->restore_whole(whole);
  }
  Result<Data> open_data(const std::string& folder) const {
    ASSIGN_OR_RETURN(data::TokenShards shards, data::TokenShards::open(folder));
    Data data{.shards = std::make_unique<data::TokenShards>(std::move(shards))};
    data.sampler =
        std::make_unique<data::Sampler>(*data.shards, data::SamplerConfig{.seed = config_.seed,
                                                                          .batch = config_.batch.sequences,
                                                                          .length = config_.batch.length,
                                                                          .overlong = config_.data.overlong});
    return data;
  }

  std::string setup_json_;
  int rank_ = 0;  // where the model is split; else any of the ranks that are alike
  Layout layout_;
  TrainSetup setup_;
  TrainConfig config_;
  Data data_, validation_;
  std::unique_ptr<AnyTrainer> trainer_;
  std::optional<Shards> shards_;
  std::shared_ptr<SnapshotMemory> memory_ = std::make_shared<SnapshotMemory>();
  std::shared_ptr<SnapshotMemory> saved_memory_ = std::make_shared<SnapshotMemory>();
};

REGISTER_STATE("train.trainer", WorkerTrainer);

// The communicators of the axes that have more than one rank.
Result<Links> links(Call& call) {
  const runtime::Shape& shape = call.place().shape;
  Links links{.deadline = call.deadline()};
  const bool groups = shape.axis_size("copy").ok(), experts = shape.axis_size("expert").ok();
  const std::pair<std::string, Communicator**> axes[] = {{"pipeline", &links.pipeline},
                                                         {"copy", &links.copies},
                                                         {sharing_axes(shape), groups    ? &links.group
                                                                               : experts ? &links.same_experts
                                                                                         : &links.replicas},
                                                         {"expert", &links.expert},
                                                         {"context", &links.context},
                                                         {"tensor", &links.tensor}};
  for (const auto& [axis, communicator] : axes) {
    const auto ranks = shape.group(call.place().rank, axis);
    if (!ranks.ok() || ranks->size() == 1) continue;
    ASSIGN_OR_RETURN(*communicator, call.communicator(axis));
  }
  if (groups || experts) {
    ASSIGN_OR_RETURN(links.replicas, call.communicator(batch_axes(shape)));
  }
  if (shape.axes().size() == 1) {
    links.all = links.replicas;
  } else {
    ASSIGN_OR_RETURN(links.all, call.communicator(""));
  }
  return links;
}

// For what is being written: until the call's deadline, or others recover.
CheckpointWriter::Patience patience_of(const Call& call) {
  return {.deadline = call.deadline(), .aborted = [&call] { return call.aborted(); }};
}

REGISTER_NEED("train.libtorch", Network::load);

REGISTER_OPERATION("train.create", Kind::kStateful, [](Call& call) -> Result<std::string> {
  auto trainer = std::make_unique<WorkerTrainer>();
  RETURN_IF_ERROR(trainer->open(std::string(call.args()), call.place().rank));
  RETURN_IF_ERROR(trainer->initialize());
  RETURN_IF_ERROR(call.put_state(kState, std::move(trainer)));
  return std::string();
});

REGISTER_OPERATION("train.step", Kind::kStateful, [](Call& call) -> Result<std::string> {
  ASSIGN_OR_RETURN(WorkerTrainer * trainer, call.state<WorkerTrainer>(kState));
  ASSIGN_OR_RETURN(const Links communicators, links(call));
  ASSIGN_OR_RETURN(const StepResult result, trainer->step(call.cursor(), communicators));
  return step_result_to_json(result);
});

REGISTER_OPERATION("train.rewind", Kind::kStateful, [](Call& call) -> Result<std::string> {
  ASSIGN_OR_RETURN(WorkerTrainer * trainer, call.state<WorkerTrainer>(kState));
  ASSIGN_OR_RETURN(const Links communicators, links(call));
  ASSIGN_OR_RETURN(const Rewind to, Rewind::from_json(call.args()));
  RETURN_IF_ERROR(trainer->rewind(to, communicators, patience_of(call)));
  return std::string();
});

REGISTER_OPERATION("train.evaluate", Kind::kStateful, [](Call& call) -> Result<std::string> {
  ASSIGN_OR_RETURN(WorkerTrainer * trainer, call.state<WorkerTrainer>(kState));
  ASSIGN_OR_RETURN(const Links communicators, links(call));
  ASSIGN_OR_RETURN(const double loss, trainer->evaluate(call.cursor(), communicators));
  return Json{{"loss", loss}}.dump();
});

REGISTER_OPERATION("train.save", Kind::kStateful, [](Call& call) -> Result<std::string> {
  ASSIGN_OR_RETURN(WorkerTrainer * trainer, call.state<WorkerTrainer>(kState));
  ASSIGN_OR_RETURN(const Json args, parse_json(call.args()));
  trainer->save({.folder = args.value("folder", std::string()), .number = args.value("save", int64_t{1})},
                args.value("loss", 0.0), call.place().rank);
  return std::string();
});

// What a disk says is chance: a call that failed on a full one would fail in every replay, with room or not.
// So the answer is a value, which the log keeps, and the program may ask again.
REGISTER_OPERATION("train.saved", Kind::kNondeterministic, [](Call& call) -> Result<std::string> {
  const auto info = CheckpointWriter::of_this_process().wait(std::string(call.args()), patience_of(call));
  if (!info.ok() && info.error().code == ErrorCode::kAborted) return info.error();  // it is asked again
  if (!info.ok()) return Json{{"error", info.error().message}}.dump();
  return Json{{"step", info->step}, {"loss", info->loss}, {"sha256", info->sha256}}.dump();
});

REGISTER_OPERATION("train.trace", Kind::kNondeterministic, [](Call&) -> Result<std::string> {
  return worker_trace_to_json(Tracer::of_this_process().take());
});

REGISTER_OPERATION("train.digest", Kind::kStateful, [](Call& call) -> Result<std::string> {
  ASSIGN_OR_RETURN(WorkerTrainer * trainer, call.state<WorkerTrainer>(kState));
  return trainer->digest();
});

}  // namespace
}  // namespace flywheel::train
