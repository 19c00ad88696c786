// What a training run is made of. Read from YAML (base/config.h); every default says why.
//
//   TrainConfig config = load_config<TrainConfig>("tiny.yaml", {"steps=100"});
//   check(config);                                   // UserError naming the key
#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "base/config.h"
#include "data/packing.h"
#include "model/decoder_config.h"
#include "train/adapter_config.h"
#include "train/digests_config.h"
#include "train/elastic_config.h"
#include "train/guard.h"
#include "train/loss_scale.h"
#include "train/offload_config.h"
#include "train/optimizer_config.h"
#include "train/pipeline_schedule.h"
#include "train/recompute.h"
#include "train/schedule.h"
#include "train/snapshots_config.h"
#include "train/trace_config.h"

namespace flywheel::train {

// Of products; weights, optimizer state, norms and the residual stream are f32 in all. fp16 and fp8 round
// what is multiplied and multiply in f32.
enum class Precision { kF32, kBF16, kFP16, kFP8 };
enum class Fp8Scales { kBlocks, kTensors };

// Where workers compute. gpu: each on a GPU of its own of its host, with what device_config.h allows; auto:
// gpu where that is all that the config asks for and this machine has as many GPUs as workers, else cpu.
enum class DeviceChoice { kAuto, kCpu, kGpu };

// Of a model of a family with experts (model/moe_config.h).
struct ExpertsConfig {
  int64_t count = 0;              // in each layer that has them
  int64_t per_token = 2;          // of them for each token
  int64_t intermediate_size = 0;  // hidden units of each; 0: model.intermediate_size
  int64_t shared_size = 0;        // hidden units of the shared expert (qwen2_moe, dots1)
  bool normalised = true;         // the gates of a token sum to 1
  double scale = 1;               // of all gates (dots1)
  int64_t dense_layers = 0;       // so many layers at the beginning have none (dots1)
  int64_t every = 1;              // each so many-th layer has them (qwen2_moe, qwen3_moe)
  template <typename V>
  void fields(V& v) {
    v("count", count), v("per_token", per_token), v("intermediate_size", intermediate_size);
    v("shared_size", shared_size), v("normalised", normalised), v("scale", scale);
    v("dense_layers", dense_layers), v("every", every);
  }
};

struct ModelConfig {
  // Go on from a model: an artifact, a folder or a GGUF. All below is then its own: what is set must be that.
  std::string from;
  std::string family = "llama";
  int64_t hidden_size = 256;
  int64_t intermediate_size = 0;  // 0: 8/3 of hidden_size, up to the next multiple of 32
  int64_t num_layers = 6;
  int64_t num_heads = 8;
  int64_t num_kv_heads = 0;  // 0: as many as num_heads
  int64_t vocab_size = 0;    // 0: the dataset's
  int64_t max_positions = 2048;
  double rope_theta = 10000;
  bool tied_embeddings = true;  // small models spend most of their parameters on the vocabulary
  ExpertsConfig experts;
  template <typename V>
  void fields(V& v) {
    v("from", from), v("family", family), v("hidden_size", hidden_size),
        v("intermediate_size", intermediate_size);
    v("num_layers", num_layers), v("num_heads", num_heads), v("num_kv_heads", num_kv_heads);
    v("vocab_size", vocab_size), v("max_positions", max_positions), v("rope_theta", rope_theta);
    v("tied_embeddings", tied_embeddings), v("experts", experts);
  }
};

// How the routers of a mixture of experts learn (kernels/route.h); of no meaning where there are none.
struct RouterConfig {
  double balance_loss = 0.01;  // times the balance of each sequence and layer; 0: none (Fedus et al. 2021)
  double z_loss = 0.001;       // times logsumexp^2 of a router's logits; 0: none (Zoph et al. 2022)
  // What an expert's bias of the choice changes by after each step, up where its load is below the mean
  // (Wang et al. 2024): balances without a loss. 0: not at all. For families that have such a bias (dots1).
  double bias_rate = 0;
  // In training an expert takes so many times its even share of a sequence's tokens, the first ones; the
  // others pass it by. 0: all of them.
  double capacity_factor = 0;
  int64_t load_every_steps = 10;  // the load of each expert is a metric of every so many-th step; 0: never
  template <typename V>
  void fields(V& v) {
    v("balance_loss", balance_loss), v("z_loss", z_loss), v("bias_rate", bias_rate);
    v("capacity_factor", capacity_factor), v("load_every_steps", load_every_steps);
  }
};

struct DataConfig {
  // A dataset artifact (docs@latest), a folder that `flywheel data` made, or one of token shards.
  std::string train;
  std::string validation;  // the same; empty: the dataset's own validation split, if it has one
  // A tokenizer artifact or folder, put beside the weights so that the model can be served; empty: the one
  // that the dataset was made with, if that is known.
  std::string tokenizer;
  // What becomes of samples (`flywheel data chat`) of more than batch.length + 1 tokens: left out, or cut.
  data::Overlong overlong = data::Overlong::kDrop;
  template <typename V>
  void fields(V& v) {
    v("train", train), v("validation", validation), v("tokenizer", tokenizer), v("overlong", overlong);
  }
};

struct BatchConfig {
  int64_t sequences = 8;        // of the global batch, over all workers
  int64_t length = 256;         // tokens in a sequence
  int64_t micro_sequences = 0;  // computed at once on a worker, the rest accumulated; 0: all of its share
  template <typename V>
  void fields(V& v) {
    v("sequences", sequences), v("length", length), v("micro_sequences", micro_sequences);
  }
};

// A machine where workers run. It has this program and the same files at the same paths.
struct HostConfig {
  std::string name;                 // for messages
  std::string address;              // at which the other hosts reach it: IPv4, or a name that has one
  std::vector<std::string> prefix;  // words in front of a worker's command, as [ssh, node7]; none: it is here
  template <typename V>
  void fields(V& v) {
    v("name", name), v("address", address), v("prefix", prefix);
  }
};

inline constexpr int64_t kMostWorkers = 1 << 20;  // so that no product of axes overflows

// Workers: data * expert * context * tensor * pipeline. Every product computes the same loss.
struct MeshConfig {
  int64_t data = 1;      // groups of workers, each with the whole model and a share of the batch
  int64_t expert = 1;    // workers that have some of the experts each; for all else they are as data workers
  int64_t context = 1;   // workers that share each sequence: keys and values go round among them
  int64_t tensor = 1;    // workers that share each layer: heads, hidden units, the vocabulary
  int64_t pipeline = 1;  // workers that have some of the layers each; needs several microbatches to be busy
  ScheduleKind schedule = ScheduleKind::kOneForwardOneBackward;  // the order of a pipeline's work
  int64_t chunks = 0;  // stages of a pipeline's worker; 0: as few as the schedule has (interleaved, zb-v: 2)
  bool sequence_parallel = false;  // norms and residuals are cut over the tensor axis too: less memory
  // ZeRO over the data, expert and context axes: 1 shares out f32 weights and optimizer state, 2 gradients
  // too, 3 what products read.
  int64_t zero = 0;
  int64_t zero_group = 0;  // data ranks that share, others have the same again; 0: all of them
  int64_t bucket_values =
      25'000'000;                 // sent over the data axis at once: whole weights of a layer, at least one
  bool overlap = true;            // that goes on while the network computes
  int64_t threads = 0;            // of each worker; 0: the machine's cores shared out
  std::vector<HostConfig> hosts;  // workers are dealt to them in blocks; none: all are on this machine
  std::string address;            // of this machine, for workers on other hosts
  int64_t port = 0;               // of this machine for them: this one and the next two; 0: any free ones
  int64_t workers() const { return data * expert * context * tensor * pipeline; }
  int64_t replicas() const { return data * expert; }  // groups of workers with sequences of their own
  // ZeRO's stage, 0 where one rank would have all; and the data ranks that lie in the same buckets.
  int stage() const {
    const int64_t ranks = (zero_group > 0 ? zero_group : data) * expert * context;
    return ranks > 1 ? static_cast<int>(zero) : 0;
  }
  int64_t sharing() const { return stage() > 0 && zero_group > 0 ? zero_group : data; }
  int64_t num_hosts() const { return hosts.empty() ? 1 : std::ssize(hosts); }
  template <typename V>
  void fields(V& v) {
    v("data", data), v("expert", expert), v("context", context), v("tensor", tensor), v("pipeline", pipeline),
        v("schedule", schedule);
    v("chunks", chunks);
    v("sequence_parallel", sequence_parallel), v("zero", zero), v("zero_group", zero_group);
    v("bucket_values", bucket_values), v("overlap", overlap), v("threads", threads);
    v("hosts", hosts), v("address", address), v("port", port);
  }
};

struct EvaluateConfig {
  int64_t every_steps = 0;  // 0: only at the end, where there is validation data
  int64_t sequences = 64;   // the first ones of the validation set
  template <typename V>
  void fields(V& v) {
    v("every_steps", every_steps), v("sequences", sequences);
  }
};

struct CheckpointConfig {
  int64_t every_steps = 0;  // 0: only at the end
  int64_t keep = 3;         // the last ones of a run, and those that an alias points to; 0: all
  // Begin where this one was, with its weights, optimizer state and place in the data: an artifact or a
  // folder, of whatever mesh, ZeRO stage and precision. The model is then its own; the state that the
  // optimizer keeps must be (begin_from.h).
  std::string from;
  template <typename V>
  void fields(V& v) {
    v("every_steps", every_steps), v("keep", keep), v("from", from);
  }
};

struct TrainConfig {
  std::string name = "model";  // of the run and of the model artifact
  uint64_t seed = 1;           // of the weights and of the order of the data
  int64_t steps = 100;
  // cpu until it is asked for: the device's code is tested on an emulated GPU alone.
  DeviceChoice device = DeviceChoice::kCpu;
  Precision precision = Precision::kBF16;
  Fp8Scales fp8_scales = Fp8Scales::kBlocks;  // 128 x 128 weights and 1 x 128 values, or a tensor share one
  Recompute recompute = Recompute::kNone;
  ModelConfig model;
  AdapterConfig adapter;  // trained in place of the model's weights
  DataConfig data;
  BatchConfig batch;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;     // of optimizer.lr
  LossScaleConfig loss_scale;  // of precision fp16
  GuardConfig guard;           // against losses and gradients that are NaN, or spikes
  DigestsConfig digests;       // against machines that compute wrongly: replicas are compared
  RouterConfig router;
  MeshConfig mesh;
  ElasticConfig elastic;  // where lost workers cannot be replaced
  OffloadConfig offload;
  EvaluateConfig evaluate;
  CheckpointConfig checkpoint;
  SnapshotsConfig snapshots;
  // A worker not heard of for so long is lost and replaced. It beats ten times a second, so the default is
  // for machines that run nothing else; where they are shared, or the network stalls, some seconds are
  // better.
  double heartbeat_timeout_s = 0.8;
  TraceConfig trace;
  template <typename V>
  void fields(V& v) {
    v("name", name), v("seed", seed), v("steps", steps), v("device", device), v("precision", precision);
    v("fp8_scales", fp8_scales), v("recompute", recompute), v("model", model), v("adapter", adapter),
        v("data", data);
    v("batch", batch), v("optimizer", optimizer), v("schedule", schedule), v("loss_scale", loss_scale);
    v("router", router), v("guard", guard), v("digests", digests), v("mesh", mesh), v("elastic", elastic);
    v("offload", offload), v("evaluate", evaluate), v("checkpoint", checkpoint), v("snapshots", snapshots);
    v("heartbeat_timeout_s", heartbeat_timeout_s), v("trace", trace);
  }
  // Whether the f32 weights of a rank's share lie in the file of its optimizer's state. They do with
  // offload.parameters nvme; and with offload.optimizer nvme where they are masters, of which products read
  // rounded copies, unless offload.parameters says cpu. Masters that nobody shares stay in memory.
  bool weights_in_files() const { return weights_in_files(mesh.zero); }
  bool weights_in_files(int64_t zero) const {
    if (offload.parameters == OffloadDevice::kNvme) return true;
    return offload.state_in_files() && offload.parameters == OffloadDevice::kNone && zero >= 1 &&
           precision != Precision::kF32;
  }
  WeightsIn weights_in() const { return weights_in_files() ? WeightsIn::kFiles : WeightsIn::kMemory; }
  // ZeRO's stage as it is done. A rank that has all shares with nobody; but weights in files come from there
  // as those of a share do.
  int stage() const {
    if (mesh.stage() > 0 || !weights_in_files()) return mesh.stage();
    return offload.parameters == OffloadDevice::kNvme ? 3 : 1;
  }
  // Whether a checkpoint is written after so many steps; the last step's is another matter.
  bool saves_after(int64_t done) const {
    return done < steps && checkpoint.every_steps > 0 && done % checkpoint.every_steps == 0;
  }
  // Whether the step after which so many are done compares replicas: also what a checkpoint is made of.
  bool compares_after(int64_t done) const {
    if (digests.every_steps == 0) return false;
    return done % digests.every_steps == 0 || done == steps || saves_after(done);
  }
};

// UserError for numbers that do not fit together.
void check(const TrainConfig& config);
// Its part that asks of each number alone whether it can be computed with.
void check_numbers(const TrainConfig& config);
// Its part that differs from mesh to mesh of the same job.
void check_axes(const TrainConfig& config);

// The decoder that ModelConfig describes (not for `from`).
model::DecoderConfig decoder_config(const ModelConfig& config, int64_t dataset_vocab_size);

}  // namespace flywheel::train

template <>
struct flywheel::ConfigEnum<flywheel::train::DeviceChoice> {
  using T = flywheel::train::DeviceChoice;
  static constexpr std::array<std::pair<const char*, T>, 3> names{
      {{"auto", T::kAuto}, {"cpu", T::kCpu}, {"gpu", T::kGpu}}};
};
template <>
struct flywheel::ConfigEnum<flywheel::train::Precision> {
  using T = flywheel::train::Precision;
  static constexpr std::array<std::pair<const char*, T>, 4> names{
      {{"f32", T::kF32}, {"bf16", T::kBF16}, {"fp16", T::kFP16}, {"fp8", T::kFP8}}};
};
template <>
struct flywheel::ConfigEnum<flywheel::train::Fp8Scales> {
  using T = flywheel::train::Fp8Scales;
  static constexpr std::array<std::pair<const char*, T>, 2> names{
      {{"blocks", T::kBlocks}, {"tensors", T::kTensors}}};
};

// Compiled once, in config.cc.
extern template flywheel::train::TrainConfig flywheel::parse_config(const std::string&, const std::string&,
                                                                    const std::vector<std::string>&);
extern template std::string flywheel::dump_config(const flywheel::train::TrainConfig&);
