#include "train/trainer_state.h"

#include <algorithm>
#include <cstring>

#include "base/hash.h"
#include "base/json.h"

namespace flywheel::train {
namespace {

constexpr char kMagic[8] = {'F', 'L', 'Y', 'T', 'R', 'S', 'T', '2'};
constexpr char kMagicOfVersion1[8] = {'F', 'L', 'Y', 'T', 'R', 'S', 'T', '1'};

// Version 1 ends after `zero`; its buffers are weights and two moments of the same size.
struct Header {
  char magic[8];
  uint64_t seed;
  int64_t next_step;
  int64_t count;        // f32 weights
  uint32_t crc;         // CRC32C of the header up to here, then of all that follows the header
  uint32_t json_bytes;  // of what stands between the header and the weights; a multiple of 8
};
static_assert(sizeof(Header) == 40);

template <typename T>
std::string_view as_text(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}
template <typename T>
std::string_view as_text(const std::vector<T>& values) {
  return as_text(std::span<const T>(values));
}

uint32_t crc_of(const Header& header) {
  return crc32c({reinterpret_cast<const char*>(&header), offsetof(Header, crc)});
}

Error corrupt(const std::string& what) {
  return make_error(ErrorCode::kCorrupt, "trainer state: {}", what);
}

Json to_json(const LossScale& s) {
  return {
      {"scale", s.scale}, {"hysteresis", s.hysteresis}, {"step", s.step}, {"last_overflow", s.last_overflow}};
}

// What the table says, into `view`; the sizes of the buffers.
Result<std::vector<uint64_t>> read_table(std::string_view text, TrainerStateView& view) {
  ASSIGN_OR_RETURN(const Json json, parse_json(text));
  std::vector<uint64_t> sizes;
  try {
    view.updates = json.at("updates").get<int64_t>();
    if (json.contains("loss_scale")) {
      const Json& scale = json.at("loss_scale");
      view.loss_scale = {.scale = scale.at("scale").get<double>(),
                         .hysteresis = scale.at("hysteresis").get<int64_t>(),
                         .step = scale.at("step").get<int64_t>(),
                         .last_overflow = scale.at("last_overflow").get<int64_t>()};
    }
    if (json.contains("guard")) view.guard = guard_state_from_json(json.at("guard"));
    for (const Json& entry : json.at("state")) {
      view.state.push_back({entry.at("name").get<std::string>(), {}});
      sizes.push_back(entry.at("bytes").get<uint64_t>());
    }
  } catch (const Json::exception& error) {
    return corrupt(std::string("its table: ") + error.what());
  }
  return sizes;
}

Error other_model(uint64_t values, int64_t expected) {
  return make_error(ErrorCode::kInvalid, "trainer state of {} values, this model has {}", values, expected);
}
Error other_optimizer() {
  return make_error(
      ErrorCode::kInvalid,
      "trainer state of another optimizer than this run's: its buffers are not optimizer.type's");
}

}  // namespace

std::string trainer_state_header(const TrainerStateView& about, const std::vector<uint64_t>& sizes,
                                 const std::function<uint32_t(uint32_t)>& crc) {
  Json table = {{"updates", about.updates}, {"state", Json::array()}};
  if (about.loss_scale.has_value()) table["loss_scale"] = to_json(*about.loss_scale);
  if (about.guard != GuardState{}) table["guard"] = to_json(about.guard);
  for (size_t i = 0; i < about.state.size(); ++i)
    table["state"].push_back({{"name", about.state[i].name}, {"bytes", sizes[i + 1]}});
  std::string json = table.dump();
  json.resize((json.size() + 7) / 8 * 8, ' ');
  Header header{.seed = about.seed,
                .next_step = about.next_step,
                .count = static_cast<int64_t>(sizes[0] / sizeof(float)),
                .json_bytes = static_cast<uint32_t>(json.size())};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.crc = crc(crc32c(json, crc_of(header)));
  return std::string(reinterpret_cast<const char*>(&header), sizeof header) + json;
}

std::string TrainerSnapshot::header() const {
  TrainerStateView about{.next_step = next_step,
                         .updates = updates,
                         .seed = seed,
                         .loss_scale = loss_scale,
                         .guard = guard,
                         .weights = {},
                         .state = {}};
  std::vector<uint64_t> sizes = {0};
  for (const std::span<const float> piece : weight_pieces()) sizes[0] += piece.size_bytes();
  for (const Buffer& buffer : state) {
    about.state.push_back({buffer.name, {}});
    sizes.push_back(buffer.view().size());
  }
  return trainer_state_header(about, sizes, [&](uint32_t crc) {
    for (const std::string_view buffer : buffers()) crc = crc32c(buffer, crc);
    return crc;
  });
}

std::vector<std::string_view> TrainerSnapshot::buffers() const {
  std::vector<std::string_view> buffers;
  for (const std::span<const float> piece : weight_pieces()) buffers.push_back(as_text(piece));
  for (const Buffer& buffer : state) buffers.push_back(as_text(buffer.view()));
  return buffers;
}

std::vector<std::span<const float>> TrainerSnapshot::weight_pieces() const {
  if (weights_owner != nullptr) return mapped_weights;
  return {weights};
}

void TrainerSnapshot::let_go_of_files() {
  mapped_weights.clear();
  weights_owner = nullptr;
  for (Buffer& buffer : state) buffer.mapped = {}, buffer.owner = nullptr;
}

std::string TrainerSnapshot::bytes() const {
  std::string joined = header();
  for (const std::string_view buffer : buffers()) joined += buffer;
  return joined;
}

Result<TrainerStateView> read_trainer_state(std::string_view bytes) {
  Header header;
  if (bytes.size() < sizeof header) return corrupt(fmt::format("{} bytes: it was cut short", bytes.size()));
  std::memcpy(&header, bytes.data(), sizeof header);
  const bool version1 = std::memcmp(header.magic, kMagicOfVersion1, sizeof kMagic) == 0;
  if (!version1 && std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    return make_error(ErrorCode::kInvalid, "not a trainer state of version 1 or 2");
  }
  std::string_view body = bytes.substr(sizeof header);
  if (crc32c(body, crc_of(header)) != header.crc) {
    return corrupt(
        fmt::format("its checksum over {} bytes does not match: damaged, or cut short", bytes.size()));
  }
  TrainerStateView view{.next_step = header.next_step,
                        .updates = header.next_step,
                        .seed = header.seed,
                        .loss_scale = std::nullopt,
                        .guard = {},
                        .weights = {},
                        .state = {}};
  const auto count = static_cast<uint64_t>(header.count);
  if (count > body.size() / sizeof(float))
    return corrupt(fmt::format("{} bytes for {} weights", body.size(), count));
  std::vector<uint64_t> sizes;
  if (version1) {
    view.state = {{"first_moments", {}}, {"second_moments", {}}};
    sizes.assign(2, count * sizeof(float));
  } else {
    if (body.size() < header.json_bytes) return corrupt("it is shorter than its table");
    ASSIGN_OR_RETURN(sizes, read_table(body.substr(0, header.json_bytes), view));
    body.remove_prefix(header.json_bytes);
  }
  const auto take = [&](uint64_t size) {
    const std::string_view taken = body.substr(0, size);
    body.remove_prefix(taken.size());
    return taken;
  };
  bool whole = true;
  view.weights = take(count * sizeof(float));
  whole &= view.weights.size() == count * sizeof(float);
  for (size_t i = 0; i < sizes.size(); ++i) {
    view.state[i].bytes = take(sizes[i]);
    whole &= view.state[i].bytes.size() == sizes[i];
  }
  if (!whole || !body.empty()) return corrupt("its buffers are not as long as its table says");
  return view;
}

std::string trainer_sha256_end(int64_t updates, const std::optional<LossScale>& loss_scale) {
  Json rest = {{"updates", updates}};
  if (loss_scale.has_value()) rest["loss_scale"] = to_json(*loss_scale);
  return rest.dump();
}

std::string trainer_sha256(const std::vector<std::span<const float>>& weights,
                           const std::vector<std::span<const std::byte>>& state, int64_t updates,
                           const std::optional<LossScale>& loss_scale) {
  Sha256 sha;
  for (const std::span<const float> piece : weights) sha.update(as_text(piece));
  for (const std::span<const std::byte> buffer : state) sha.update(as_text(buffer));
  sha.update(trainer_sha256_end(updates, loss_scale));
  return sha.hex();
}

std::string TrainerSnapshot::sha256() const {
  std::vector<std::span<const std::byte>> buffers;
  for (const Buffer& buffer : state) buffers.push_back(buffer.view());
  return trainer_sha256(weight_pieces(), buffers, updates, loss_scale);
}

void make_room(const OptimizerConfig& config, const std::vector<FlatWeight>& weights, int64_t count,
               TrainerSnapshot& snapshot) {
  snapshot.weights.resize(static_cast<size_t>(count));
  const std::vector<StateLayout::Buffer> buffers = state_layout(config, weights).buffers;
  snapshot.state.resize(buffers.size());
  for (size_t b = 0; b < buffers.size(); ++b) {
    snapshot.state[b].name = buffers[b].name;
    snapshot.state[b].bytes.resize(static_cast<size_t>(buffers[b].bytes()));
  }
}

TrainerSnapshot empty_snapshot(const OptimizerConfig& config, const std::vector<FlatWeight>& weights) {
  TrainerSnapshot snapshot;
  make_room(config, weights, flat_count(weights), snapshot);
  return snapshot;
}

void join(const OptimizerConfig& config, const LocalDecoder& local, const std::vector<FlatWeight>& held,
          const TrainerSnapshot& part, TrainerSnapshot& whole) {
  for_each_weight_run(local, held, [&](int64_t in_whole, int64_t in_part, int64_t count) {
    std::copy_n(part.weights.begin() + in_part, count, whole.weights.begin() + in_whole);
  });
  for_each_state_run(config, local, held, [&](const StateRun& run) {
    std::copy_n(part.state[run.own_buffer].view().begin() + run.own_byte, run.bytes,
                whole.state[run.whole_buffer].bytes.begin() + run.whole_byte);
  });
}

Result<void> take_part(const OptimizerConfig& config, const LocalDecoder& local,
                       const std::vector<FlatWeight>& held, const TrainerStateView& whole,
                       std::span<float> weights, const std::vector<StateBuffer>& state) {
  const std::vector<FlatWeight> all = flat_weights(local.whole_weights);
  const int64_t count = flat_count(all);
  if (whole.weights.size() != static_cast<size_t>(count) * sizeof(float))
    return other_model(whole.weights.size() / sizeof(float), count);
  const auto same = [](const StateLayout::Buffer& mine, const TrainerStateView::Buffer& theirs) {
    return mine.name == theirs.name && static_cast<size_t>(mine.bytes()) == theirs.bytes.size();
  };
  if (!std::ranges::equal(state_layout(config, all).buffers, whole.state, same)) return other_optimizer();
  for_each_weight_run(local, held, [&](int64_t in_whole, int64_t in_part, int64_t n) {
    std::memcpy(weights.data() + in_part,
                whole.weights.data() + in_whole * static_cast<int64_t>(sizeof(float)),
                static_cast<size_t>(n) * sizeof(float));
  });
  for_each_state_run(config, local, held, [&](const StateRun& run) {
    std::memcpy(state[run.own_buffer].bytes.data() + run.own_byte,
                whole.state[run.whole_buffer].bytes.data() + run.whole_byte, static_cast<size_t>(run.bytes));
  });
  return {};
}

Result<void> take_all(const TrainerStateView& from, int64_t count,
                      const std::function<void(std::string_view)>& put,
                      const std::vector<StateBuffer>& state) {
  if (from.weights.size() != static_cast<size_t>(count) * sizeof(float))
    return other_model(from.weights.size() / sizeof(float), count);
  const auto same = [](const StateBuffer& mine, const TrainerStateView::Buffer& theirs) {
    return mine.name == theirs.name && mine.bytes.size() == theirs.bytes.size();
  };
  if (!std::ranges::equal(state, from.state, same)) return other_optimizer();
  put(from.weights);
  for (size_t i = 0; i < state.size(); ++i)
    std::ranges::copy(std::as_bytes(std::span(from.state[i].bytes)), state[i].bytes.begin());
  return {};
}

}  // namespace flywheel::train
