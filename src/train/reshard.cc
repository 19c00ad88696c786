#include "train/reshard.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/file.h"
#include "base/hash.h"
#include "model/deepspeed_weights.h"
#include "model/open_model.h"
#include "model/training_source.h"
#include "model/verify_weights.h"
#include "train/adapter_config.h"
#include "train/checkpoint.h"
#include "train/foreign_state.h"
#include "train/rounding.h"
#include "train/whole_state.h"

namespace flywheel::train {
namespace {

constexpr size_t kChunk = 1 << 20;
constexpr int64_t kOnlySave = 1;  // its folder is new

using Sink = std::function<Result<void>(std::string_view)>;

// One file of the new checkpoint, as a list of what it takes from where.
struct Target {
  std::string path;
  std::vector<StatePiece> pieces;
  std::vector<uint64_t> sizes;
  std::vector<std::string> names;  // of the optimizer's buffers
};

class Reshard {
 public:
  Reshard(WholeState& state, std::function<void(uint64_t, uint64_t)> progress)
      : state_(state), progress_(std::move(progress)) {}

  void set_total(uint64_t bytes) { total_ = bytes; }

  // The buffers of a file, one after the other, in chunks.
  Result<void> stream(const Target& target, const Sink& sink) {
    std::string chunk;
    chunk.reserve(kChunk);
    const auto flush = [&]() -> Result<void> {
      RETURN_IF_ERROR(sink(chunk));
      add_done(chunk.size());
      chunk.clear();
      return {};
    };
    // `bytes` more: of a piece from `at` on, or zeros without one.
    const auto add = [&](const StatePiece* piece, uint64_t at, uint64_t bytes) -> Result<void> {
      while (bytes > 0) {
        const size_t before = chunk.size(), now = std::min<uint64_t>(bytes, kChunk - before);
        chunk.resize(before + now, '\0');
        if (piece != nullptr) {
          RETURN_IF_ERROR(
              state_.read(piece->whole_buffer, piece->whole_byte + at, {chunk.data() + before, now}));
        }
        at += now, bytes -= now;
        if (chunk.size() == kChunk) RETURN_IF_ERROR(flush());
      }
      return {};
    };
    auto piece = target.pieces.begin();
    for (size_t b = 0; b < target.sizes.size(); ++b) {
      uint64_t at = 0;
      for (; piece != target.pieces.end() && piece->own_buffer == b; ++piece) {
        RETURN_IF_ERROR(add(nullptr, 0, piece->own_byte - at));
        RETURN_IF_ERROR(add(&*piece, 0, piece->bytes));
        at = piece->own_byte + piece->bytes;
      }
      RETURN_IF_ERROR(add(nullptr, 0, target.sizes[b] - at));
    }
    return flush();
  }

  // Twice: the header in front of the bytes has their checksum.
  Result<void> write(const Target& target) {
    uint32_t crc = 0;
    TrainerStateView about = state_.about();
    about.state.clear();
    for (const std::string& name : target.names) about.state.push_back({name, {}});
    Result<void> read;
    const std::string header = trainer_state_header(about, target.sizes, [&](uint32_t before) {
      crc = before;
      read = stream(target, [&](std::string_view bytes) -> Result<void> {
        crc = crc32c(bytes, crc);
        return {};
      });
      return crc;
    });
    if (!read.ok()) return read.error();
    ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(target.path));
    RETURN_IF_ERROR(file.write(header));
    RETURN_IF_ERROR(stream(target, [&](std::string_view bytes) { return file.write(bytes); }));
    return file.commit();
  }

  Result<std::string> sha256() {
    return state_.sha256([this](uint64_t bytes) { add_done(bytes); });
  }

 private:
  void add_done(uint64_t bytes) {
    done_ += bytes;
    if (progress_) progress_(done_, total_);
  }

  WholeState& state_;
  std::function<void(uint64_t, uint64_t)> progress_;
  uint64_t done_ = 0, total_ = 0;
};

// A shard's list is made when its turn comes: the lists of all ranks together are long.
Target shard_target(const TrainConfig& config, const Layout& layout, int rank, const std::string& folder) {
  const MeshPlace place = layout.place(rank);
  const LocalDecoder local = layout.local(place);
  const Shares shares(local, layout.share_of(place));
  Target target{.path = folder + "/" + shard_name(kOnlySave, rank),
                .pieces = state_pieces(config.optimizer, local, shares.held()),
                .sizes = state_sizes(config.optimizer, shares.held(), shares.held_count()),
                .names = {}};
  for (const StateLayout::Buffer& buffer : state_layout(config.optimizer, shares.held()).buffers)
    target.names.push_back(buffer.name);
  return target;
}

uint64_t bytes_of_shard(const TrainConfig& config, const Layout& layout, int rank) {
  const MeshPlace place = layout.place(rank);
  const Shares shares(layout.local(place), layout.share_of(place));
  uint64_t sum = 0;
  for (const uint64_t size : state_sizes(config.optimizer, shares.held(), shares.held_count())) sum += size;
  return sum;
}

Result<void> copy_model(const std::string& source, const std::string& to) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, list_folder(source));
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(source + "/" + name));
    RETURN_IF_ERROR(write_file(to + "/" + name, file.bytes()));
  }
  return {};
}

// config.json of the model whose weights others saved: beside them, or of the config's model.from. `beside`
// becomes the folder of its tokenizer.
Result<Json> foreign_decoder(const std::string& source, const TrainConfig& config, std::string& beside) {
  const bool own = path_exists(source + "/config.json");
  if (!own && config.model.from.empty()) {
    return make_error(
        ErrorCode::kNotFound,
        "{}: there is no config.json in it, so what to compute with its weights is not known; put "
        "the model's there, or --set model.from=MODEL names one that is described alike",
        source);
  }
  ASSIGN_OR_RETURN(const model::OpenModel described,
                   model::open_model(source, own ? std::string() : config.model.from));
  beside = described.beside;
  return model::decoder_config_to_hf(described.decoder.config, "float32");
}

// Every byte against the checksums that files of others have; DCP's pieces are compared when they are read.
Result<void> check_foreign(const std::string& source) {
  if (model::training_format(source) != model::WeightFormat::kDeepSpeed) return {};
  // Beside the step's folder may lie a model, which is not what is taken over.
  ASSIGN_OR_RETURN(const std::string step, model::deepspeed_step_folder(source));
  ASSIGN_OR_RETURN(const model::WeightsReport report, model::verify_weights(step));
  if (report.problems.empty()) return {};
  return make_error(ErrorCode::kCorrupt, "{}", report.problems.front());
}

Json mesh_json(const MeshConfig& mesh) {
  return {{"data", mesh.data},
          {"expert", mesh.expert},
          {"context", mesh.context},
          {"tensor", mesh.tensor},
          {"pipeline", mesh.pipeline},
          {"zero", mesh.zero},
          {"zero_group", mesh.zero_group}};
}

Result<ReshardedCheckpoint> write_all(const std::string& source, const std::string& to,
                                      const TrainConfig& config, const std::string& from,
                                      std::function<void(uint64_t, uint64_t)> progress) {
  const bool foreign = is_foreign_checkpoint(source);
  CheckpointInfo info{.loss = std::nan("")};
  std::string beside;
  if (!foreign) {
    ASSIGN_OR_RETURN(info, read_checkpoint_info(source));
  }
  ASSIGN_OR_RETURN(const Json decoder_json,
                   foreign ? foreign_decoder(source, config, beside) : checkpoint_decoder(source));
  ASSIGN_OR_RETURN(const model::DecoderConfig decoder, model::decoder_config_from_hf(decoder_json));
  ASSIGN_OR_RETURN(const Layout layout, make_layout(config, decoder_of(config, decoder)));
  ASSIGN_OR_RETURN(WholeState state,
                   foreign ? open_foreign_state(source, config, layout.decoder) : WholeState::open(source));
  if (foreign) {
    RETURN_IF_ERROR(check_foreign(source));
    info.step = state.about().next_step;
  }
  RETURN_IF_ERROR(check_whole(config.optimizer, flat_weights(layout.decoder), state));
  const std::vector<int> holders = layout.holders();
  ReshardedCheckpoint made{.step = info.step, .loss = info.loss, .shards = std::ssize(holders)};
  for (const int rank : holders) made.state_bytes += bytes_of_shard(config, layout, rank);
  Reshard reshard(state, std::move(progress));
  reshard.set_total(std::accumulate(state.sizes().begin(), state.sizes().end(), 2 * made.state_bytes));
  ASSIGN_OR_RETURN(made.sha256, reshard.sha256());
  if (!state.old() && !info.sha256.empty() && made.sha256 != info.sha256) {
    return make_error(
        ErrorCode::kCorrupt,
        "{}: weights and optimizer state have the SHA-256 {}, but checkpoint.json says {}; `flywheel ckpt "
        "verify` tells what is damaged",
        source, made.sha256, info.sha256);
  }
  if (foreign) {
    RETURN_IF_ERROR(write_checkpoint_model(to, layout.decoder,
                                           {.config = config,
                                            .decoder = decoder_json,
                                            .dtype = compute_dtype(config.precision),
                                            .tokenizer_folder = beside},
                                           state));
  } else {
    RETURN_IF_ERROR(copy_model(source + "/model", to + "/model"));
  }
  RETURN_IF_ERROR(write_file(shard_config_path(to), dump_config(config) + "\n"));
  CheckpointInfo info_of_made{
      .step = info.step, .loss = info.loss, .sha256 = made.sha256, .decoder = decoder_json};
  for (const int rank : holders) {
    RETURN_IF_ERROR(reshard.write(shard_target(config, layout, rank, to)));
    info_of_made.shards.push_back(shard_name(kOnlySave, rank));
  }
  RETURN_IF_ERROR(write_checkpoint_info(to, info_of_made, state.about(),
                                        {{"from", from}, {"mesh", mesh_json(config.mesh)}}));
  return made;
}

}  // namespace

Result<ReshardedCheckpoint> reshard_checkpoint(const std::string& source, const std::string& to,
                                               const TrainConfig& config, const std::string& from,
                                               const std::function<void(uint64_t, uint64_t)>& progress) {
  Result<ReshardedCheckpoint> made = write_all(source, to, config, from, progress);
  if (!made.ok()) (void)remove_all(to);
  return made;
}

}  // namespace flywheel::train
