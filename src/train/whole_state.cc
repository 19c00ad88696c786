#include "train/whole_state.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/hash.h"
#include "model/decoder.h"
#include "model/decoder_config.h"
#include "train/adapter_config.h"
#include "train/checkpoint_info.h"

namespace flywheel::train {
namespace {

TrainerStateView without_bytes(TrainerStateView view) {
  view.weights = {};
  for (TrainerStateView::Buffer& buffer : view.state) buffer.bytes = {};
  return view;
}

bool same_moment(const TrainerStateView& a, const TrainerStateView& b) {
  return a.next_step == b.next_step && a.updates == b.updates && a.seed == b.seed &&
         a.loss_scale == b.loss_scale && a.guard == b.guard;
}

}  // namespace

std::string shard_name(int64_t save, int rank) {
  return fmt::format("shards/{}/rank-{:05}.state", save, rank);
}

std::string shard_config_path(const std::string& checkpoint) {
  return checkpoint + "/config.yaml";
}

Result<Json> checkpoint_decoder(const std::string& checkpoint) {
  ASSIGN_OR_RETURN(const CheckpointInfo info, read_checkpoint_info(checkpoint));
  if (info.decoder.is_object()) return info.decoder;
  ASSIGN_OR_RETURN(const std::string text, read_file(checkpoint + "/model/config.json"));
  return parse_json(text);
}

std::vector<StatePiece> state_pieces(const OptimizerConfig& config, const LocalDecoder& local,
                                     const std::vector<FlatWeight>& held) {
  std::vector<StatePiece> pieces;
  for_each_weight_run(local, held, [&](int64_t in_whole, int64_t in_part, int64_t count) {
    pieces.push_back({.whole_byte = static_cast<uint64_t>(in_whole) * sizeof(float),
                      .own_byte = static_cast<uint64_t>(in_part) * sizeof(float),
                      .bytes = static_cast<uint64_t>(count) * sizeof(float)});
  });
  for_each_state_run(config, local, held, [&](const StateRun& run) {
    pieces.push_back({.whole_buffer = 1 + run.whole_buffer,
                      .own_buffer = 1 + run.own_buffer,
                      .whole_byte = static_cast<uint64_t>(run.whole_byte),
                      .own_byte = static_cast<uint64_t>(run.own_byte),
                      .bytes = static_cast<uint64_t>(run.bytes)});
  });
  std::ranges::sort(pieces, {}, [](const StatePiece& p) { return std::pair(p.own_buffer, p.own_byte); });
  return pieces;
}

std::vector<uint64_t> state_sizes(const OptimizerConfig& config, const std::vector<FlatWeight>& held,
                                  int64_t values) {
  std::vector<uint64_t> sizes = {static_cast<uint64_t>(values) * sizeof(float)};
  for (const StateLayout::Buffer& buffer : state_layout(config, held).buffers)
    sizes.push_back(static_cast<uint64_t>(buffer.bytes()));
  return sizes;
}

Result<WholeState> WholeState::open(const std::string& checkpoint) {
  WholeState state;
  const std::string whole = checkpoint + "/trainer.state", config_path = shard_config_path(checkpoint);
  if (path_exists(whole) || !path_exists(config_path)) {
    RETURN_IF_ERROR(state.open_whole(whole));
    return state;
  }
  const auto config = parse_config<TrainConfig>(config_path, read_config_file(config_path));
  ASSIGN_OR_RETURN(const Json json, checkpoint_decoder(checkpoint));
  ASSIGN_OR_RETURN(const model::DecoderConfig decoder, model::decoder_config_from_hf(json));
  ASSIGN_OR_RETURN(const Layout layout, make_layout(config, decoder_of(config, decoder)));
  ASSIGN_OR_RETURN(const CheckpointInfo info, read_checkpoint_info(checkpoint));
  std::vector<std::string> files;
  for (const std::string& shard : info.shards) {
    ASSIGN_OR_RETURN(files.emplace_back(), path_within(checkpoint, shard));
  }
  RETURN_IF_ERROR(state.open_shards(config.optimizer, layout, files, {}));
  return state;
}

Result<WholeState> WholeState::of_shards(const OptimizerConfig& config, const Layout& layout,
                                         const std::vector<std::string>& files,
                                         std::vector<MappedFile> maps) {
  WholeState state;
  RETURN_IF_ERROR(state.open_shards(config, layout, files, std::move(maps)));
  return state;
}

WholeState WholeState::of_reader(TrainerStateView about, std::vector<uint64_t> sizes, Read read) {
  WholeState state;
  state.about_ = without_bytes(std::move(about));
  state.sizes_ = std::move(sizes);
  state.reader_ = std::move(read);
  return state;
}

Result<void> WholeState::open_whole(const std::string& path) {
  File& file = files_.emplace_back();
  file.path = path;
  ASSIGN_OR_RETURN(const TrainerStateView view, look(file));
  about_ = without_bytes(view);
  old_ = file.map.bytes().starts_with("FLYTRST1");
  for (size_t b = 0; b < file.buffers.size(); ++b) {
    sizes_.push_back(file.buffers[b].size());
    pieces_.push_back({{{.whole_buffer = b, .own_buffer = b, .bytes = file.buffers[b].size()}, 0}});
  }
  order_pieces();
  return {};
}

Result<void> WholeState::open_shards(const OptimizerConfig& config, const Layout& layout,
                                     const std::vector<std::string>& files, std::vector<MappedFile> maps) {
  const std::vector<int> holders = layout.holders();
  if (files.size() != holders.size()) {
    return make_error(ErrorCode::kInvalid, "checkpoint.json names {} shards, the mesh of config.yaml has {}",
                      files.size(), holders.size());
  }
  const std::vector<FlatWeight> all = flat_weights(layout.decoder);
  sizes_ = state_sizes(config, all, flat_count(all));
  pieces_.resize(sizes_.size());
  for (size_t i = 0; i < holders.size(); ++i) {
    const MeshPlace place = layout.place(holders[i]);
    const LocalDecoder local = layout.local(place);
    const Shares shares(local, layout.share_of(place));
    for (const StatePiece& piece : state_pieces(config, local, shares.held()))
      pieces_[piece.whole_buffer].push_back({piece, i});
    File& file = files_.emplace_back();
    file.path = files[i];
    if (!maps.empty()) file.map = std::move(maps[i]);
    file.sizes = state_sizes(config, shares.held(), shares.held_count());
  }
  order_pieces();
  ASSIGN_OR_RETURN(about_, look(files_[0]));
  about_ = without_bytes(about_);
  about_.state.clear();
  for (const StateLayout::Buffer& buffer : state_layout(config, all).buffers)
    about_.state.push_back({buffer.name, {}});
  return {};
}

// What several ranks have is taken from the first, so that the pieces follow each other.
void WholeState::order_pieces() {
  for (std::vector<Piece>& of_buffer : pieces_) {
    std::ranges::stable_sort(of_buffer, {}, &Piece::whole_byte);
    uint64_t end = 0;
    for (Piece& piece : of_buffer) {
      const uint64_t known = std::min(end > piece.whole_byte ? end - piece.whole_byte : 0, piece.bytes);
      piece.whole_byte += known, piece.own_byte += known, piece.bytes -= known;
      end = std::max(end, piece.whole_byte + piece.bytes);
    }
    std::erase_if(of_buffer, [](const Piece& piece) { return piece.bytes == 0; });
  }
}

Result<TrainerStateView> WholeState::look(File& file) {
  if (file.map.size() == 0) {
    ASSIGN_OR_RETURN(file.map, MappedFile::open(file.path));
  }
  Result<TrainerStateView> view = read_trainer_state(file.map.bytes());
  if (!view.ok()) return make_error(view.error().code, "{}: {}", file.path, view.error().message);
  std::vector<uint64_t> sizes = {view->weights.size()};
  file.buffers = {view->weights};
  for (const TrainerStateView::Buffer& buffer : view->state) {
    file.buffers.push_back(buffer.bytes);
    sizes.push_back(buffer.bytes.size());
  }
  if (!file.sizes.empty() && sizes != file.sizes) {
    return make_error(ErrorCode::kInvalid,
                      "{}: is not the shard that the mesh of the checkpoint's config.yaml has", file.path);
  }
  file.looked_at = true;
  return view;
}

Result<void> WholeState::look_once(File& file) {
  if (file.looked_at) return {};
  ASSIGN_OR_RETURN(const TrainerStateView view, look(file));
  if (same_moment(view, about_)) return {};
  file.looked_at = false;
  return make_error(ErrorCode::kInvalid,
                    "{}: is of step {}, the shards beside it are of step {}, or of another run", file.path,
                    view.next_step, about_.next_step);
}

Result<void> WholeState::check() {
  for (File& file : files_) RETURN_IF_ERROR(look_once(file));
  return {};
}

Result<void> WholeState::read(size_t buffer, uint64_t at, std::span<char> out) {
  CHECK(buffer < sizes_.size() && at + out.size() <= sizes_[buffer], "bytes {} to {} of buffer {}", at,
        at + out.size(), buffer);
  if (reader_) return reader_(buffer, at, out);
  return visit(buffer, at, out.size(), [&](std::string_view bytes) {
    std::ranges::copy(bytes, out.begin());
    out = out.subspan(bytes.size());
  });
}

Result<void> WholeState::visit(size_t buffer, uint64_t at, uint64_t bytes,
                               const std::function<void(std::string_view)>& take) {
  static constexpr char kNobodys[4096] = {};
  const auto take_zeros = [&](uint64_t count) {
    for (; count > 0; count -= std::min<uint64_t>(count, sizeof kNobodys))
      take({kNobodys, std::min<uint64_t>(count, sizeof kNobodys)});
  };
  const std::vector<Piece>& pieces = pieces_[buffer];
  const uint64_t end = at + bytes;
  auto p = std::ranges::upper_bound(pieces, at, {}, &Piece::whole_byte);
  if (p != pieces.begin()) --p;  // the last that begins at `at` or before
  for (; p != pieces.end() && p->whole_byte < end; ++p) {
    const uint64_t begin = std::max(at, p->whole_byte), last = std::min(end, p->whole_byte + p->bytes);
    if (begin >= last) continue;
    File& file = files_[p->file];
    RETURN_IF_ERROR(look_once(file));
    take_zeros(begin - at);
    take(file.buffers[p->own_buffer].substr(p->own_byte + (begin - p->whole_byte), last - begin));
    at = last;
  }
  take_zeros(end - at);
  return {};
}

Result<std::string> WholeState::sha256(const std::function<void(uint64_t)>& progress) {
  constexpr uint64_t kChunk = 1 << 20;
  Sha256 sha;
  std::string chunk;
  for (size_t b = 0; b < sizes_.size(); ++b) {
    for (uint64_t at = 0; at < sizes_[b]; at += kChunk) {
      const uint64_t now = std::min(kChunk, sizes_[b] - at);
      if (reader_) {
        chunk.resize(now);
        RETURN_IF_ERROR(reader_(b, at, chunk));
        sha.update(chunk);
      } else {
        RETURN_IF_ERROR(visit(b, at, now, [&](std::string_view bytes) { sha.update(bytes); }));
      }
      if (progress) progress(now);
    }
  }
  sha.update(trainer_sha256_end(about_.updates, about_.loss_scale));
  return sha.hex();
}

Result<void> check_whole(const OptimizerConfig& config, const std::vector<FlatWeight>& all,
                         const WholeState& whole) {
  const StateLayout layout = state_layout(config, all);
  const bool same = whole.sizes() == state_sizes(config, all, flat_count(all)) &&
                    std::ranges::equal(layout.buffers, whole.about().state, {}, &StateLayout::Buffer::name,
                                       &TrainerStateView::Buffer::name);
  if (same) return {};
  return make_error(
      ErrorCode::kInvalid,
      "the checkpoint's state is of another model or optimizer than the config's: {} weights and {} "
      "buffers of state, not {} and {} of optimizer.type {}",
      whole.sizes()[0] / sizeof(float), whole.sizes().size() - 1, flat_count(all), layout.buffers.size(),
      config_name(config.type));
}

Result<void> take_part(const OptimizerConfig& config, const LocalDecoder& local,
                       const std::vector<FlatWeight>& held, WholeState& whole, std::span<float> weights,
                       const std::vector<StateBuffer>& state) {
  RETURN_IF_ERROR(check_whole(config, flat_weights(local.whole_weights), whole));
  for (const StatePiece& piece : state_pieces(config, local, held)) {
    char* own = piece.own_buffer == 0 ? reinterpret_cast<char*>(weights.data())
                                      : reinterpret_cast<char*>(state[piece.own_buffer - 1].bytes.data());
    RETURN_IF_ERROR(whole.read(piece.whole_buffer, piece.whole_byte, {own + piece.own_byte, piece.bytes}));
  }
  return {};
}

}  // namespace flywheel::train
