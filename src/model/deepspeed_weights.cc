#include "model/deepspeed_weights.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <set>

#include "base/file.h"
#include "model/flat_buffer.h"
#include "model/torch_internal.h"

namespace flywheel::model {
namespace {

using kernels::DType;
using Kind = PickleNode::Kind;
using Sizes = std::vector<int64_t>;

constexpr std::string_view kModelEnd = "_model_states.pt", kOptimizerEnd = "_optim_states.pt",
                           kRank = "zero_pp_rank_", kOnlyModelRank = "mp_rank_00";
constexpr int64_t kMostElements = int64_t{1} << 48;

int64_t product(const Sizes& sizes) {
  int64_t n = 1;
  for (const int64_t size : sizes) n *= size;
  return n;
}

// A number, or a member of DeepSpeed's ZeroStageEnum: by its value, and by its name in pickles of
// Python 3.11.0 to 3.11.3. -1 for anything else.
int64_t zero_stage_of(const PickleNode& node) {
  constexpr std::array<std::string_view, 4> kNames = {"disabled", "optimizer_states", "gradients", "weights"};
  if (node.is(Kind::kInt)) return node.integer;
  const bool by_name = node.is_call_of("builtins.getattr");
  const PickleNode* given = node.is(Kind::kObject) ? node.argument(by_name ? 1 : 0) : nullptr;
  if (given == nullptr) return -1;
  if (!by_name) return given->is(Kind::kInt) ? given->integer : -1;
  const auto found = std::ranges::find(kNames, given->text);
  return found == kNames.end() ? -1 : found - kNames.begin();
}

// The entries of a dict by their string keys, so that a dict of many is not searched through for each name.
std::map<std::string_view, const PickleNode*> entries_of(const PickleNode* dict) {
  std::map<std::string_view, const PickleNode*> out;
  if (dict == nullptr || !dict->is(Kind::kDict)) return out;
  for (size_t i = 0; i + 1 < dict->items.size(); i += 2) {
    const PickleNode& key = *dict->items[i];
    if (key.is(Kind::kString) && key.text.size() <= kMostNameBytes) out[key.text] = dict->items[i + 1];
  }
  return out;
}

// The number behind "zero_pp_rank_"; -1 where there is none.
int64_t rank_of(const std::string& name) {
  const size_t at = name.find(kRank);
  if (at == std::string::npos) return -1;
  int64_t rank = -1;
  const char* digits = name.data() + at + kRank.size();
  std::from_chars(digits, name.data() + name.size(), rank);
  return rank;
}

class DeepSpeedReader {
 public:
  DeepSpeedReader(const std::string& folder, std::string step)
      : step_(std::move(step)), weights_(std::make_unique<GatheredWeights>(folder, folder)) {}

  Result<std::unique_ptr<WeightSource>> read() {
    RETURN_IF_ERROR(find_files());
    RETURN_IF_ERROR(open_files());
    RETURN_IF_ERROR(zero_stage_ < 1 ? add_module() : add_zero());
    RETURN_IF_ERROR(weights_->finish());
    return std::unique_ptr<WeightSource>(std::move(weights_));
  }

 private:
  struct Shape {
    std::string name;
    Sizes sizes;
  };

  Error corrupt(const std::string& file, const std::string& why) const {
    return make_error(ErrorCode::kCorrupt, "{}: {}", file, why);
  }
  Error refuse(const std::string& why) const { return make_error(ErrorCode::kInvalid, "{}: {}", step_, why); }

  // --- files ---
  Result<void> find_files() {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, list_folder(step_));
    for (const std::string& name : names) {
      const bool is_model = name.ends_with(kModelEnd), is_optimizer = name.ends_with(kOptimizerEnd);
      if (!is_model && !is_optimizer) continue;
      if (name.find("expert_") != std::string::npos || name.starts_with("expp_rank_")) {
        return refuse(name +
                      " holds experts of a partition of their own, which are not merged; convert the "
                      "checkpoint with DeepSpeed's ds_to_universal.py");
      }
      if (name.find(kOnlyModelRank) == std::string::npos) {
        return refuse(name +
                      " is of a model cut over tensor or pipeline ranks, which is not merged; convert "
                      "the checkpoint with DeepSpeed's ds_to_universal.py");
      }
      auto& files = is_model ? model_files_ : optimizer_files_;
      if (!files.emplace(rank_of(name), step_ + "/" + name).second)
        return refuse("two kinds of files of one rank, " + name +
                      " and another; remove those of the older save");
    }
    if (model_files_.empty()) {
      return make_error(ErrorCode::kNotFound, "{}: no file *{} of DeepSpeed in it", step_, kModelEnd);
    }
    // Ranks from 0 on, without a hole; a model's file that all ranks share has none (-1).
    for (const auto* files : {&model_files_, &optimizer_files_}) {
      int64_t next = !files->empty() && files->begin()->first == -1 ? -1 : 0;
      for (const auto& [rank, path] : *files) {
        if (rank != next++) {
          return refuse(fmt::format("the file of rank {} is missing ({} is there)", next - 1, path));
        }
      }
    }
    return {};
  }

  Result<void> open_files() {
    for (const auto& [rank, path] : model_files_) {
      ASSIGN_OR_RETURN(TorchFile file, TorchFile::open(path));
      models_.push_back(&weights_->keep(std::move(file)));
    }
    for (const auto& [rank, path] : optimizer_files_) {
      ASSIGN_OR_RETURN(TorchFile file, TorchFile::open(path));
      optimizers_.push_back(&weights_->keep(std::move(file)));
      const PickleNode* state = optimizers_.back()->root().get("optimizer_state_dict");
      if (state == nullptr) return corrupt(path, "has no optimizer_state_dict");
      states_.push_back(state);
    }
    if (states_.empty()) return {};
    const PickleNode* stage = states_[0]->get("zero_stage");
    if (stage == nullptr) return {};
    zero_stage_ = zero_stage_of(*stage);
    if (zero_stage_ < 0 || zero_stage_ > 3) return refuse("an unknown ZeRO stage");
    if (zero_stage_ == 0) return {};
    const PickleNode* count = states_[0]->get("partition_count");
    int64_t world = count != nullptr && count->is(Kind::kInt) ? count->integer : 0;
    if (count != nullptr && count->is(Kind::kList)) {
      for (const PickleNode* each : count->items) world = std::max(world, each->integer);
    }
    if (world != std::ssize(states_)) {
      return refuse(fmt::format(
          "{} ranks saved it, but {} files *{} are there: some are missing, or are of an older save", world,
          states_.size(), kOptimizerEnd));
    }
    if (zero_stage_ == 3 && models_.size() != states_.size()) {
      return refuse(fmt::format("{} files *{}, but {} of *{}", models_.size(), kModelEnd, states_.size(),
                                kOptimizerEnd));
    }
    return {};
  }

  // --- what is in them ---
  // Without ZeRO: the state_dict of the model.
  Result<void> add_module() {
    const TorchFile& file = *models_[0];
    const PickleNode* module = file.root().get("module");
    if (module == nullptr) return corrupt(file.path(), "has no module");
    ASSIGN_OR_RETURN(const std::vector<TorchFile::Named> found, file.tensors_below(*module));
    for (const auto& [name, node] : found) {
      ASSIGN_OR_RETURN(const TorchTensor tensor, file.tensor(*node, name));
      add_torch_tensor(*weights_, name, file, tensor);
    }
    return {};
  }

  Result<void> add_zero() {
    for (const char* key : {"ds_autoep_layers", "autoep_layers"}) {
      const PickleNode* layers = models_[0]->root().get(key);
      if (layers != nullptr && !layers->items.empty())
        return refuse(
            "it has experts of a partition of their own (AutoEP), which are not merged; convert it with "
            "DeepSpeed's ds_to_universal.py");
    }
    RETURN_IF_ERROR(add_buffers());
    RETURN_IF_ERROR(add_frozen());
    RETURN_IF_ERROR(zero_stage_ == 3 ? add_partitioned_parameters() : add_partitioned_groups());
    const PickleNode* shared = models_[0]->root().get("shared_params");
    for (size_t i = 0; shared != nullptr && shared->is(Kind::kDict) && i + 1 < shared->items.size(); i += 2)
      weights_->add_alias(std::string(shared->items[i]->text.substr(0, kMostNameBytes)),
                          std::string(shared->items[i + 1]->text.substr(0, kMostNameBytes)));
    return {};
  }

  // name -> torch.Size, in order.
  Result<std::vector<Shape>> read_shapes(const PickleNode* dict) const {
    std::vector<Shape> out;
    if (dict == nullptr || dict->is(Kind::kNone)) return out;
    for (size_t i = 0; dict->is(Kind::kDict) && i + 1 < dict->items.size(); i += 2) {
      Shape shape{.name = std::string(dict->items[i]->text.substr(0, kMostNameBytes)), .sizes = {}};
      __int128 all = 1;
      for (const PickleNode* size : dict->items[i + 1]->items) {
        if (!size->is(Kind::kInt) || size->integer < 0 || size->integer > kMostElements) all = -1;
        shape.sizes.push_back(size->integer);
        all *= size->integer;
        if (all < 0 || all > kMostElements || shape.sizes.size() > 16)
          return corrupt(models_[0]->path(), "the shape of " + shape.name + " cannot be");
      }
      out.push_back(std::move(shape));
    }
    return out;
  }

  // Buffers were not partitioned; they become f32, as all that zero_to_fp32.py writes.
  Result<void> add_buffers() {
    const TorchFile& file = *models_[0];
    const PickleNode *names = file.root().get("buffer_names"), *module = file.root().get("module");
    if (names == nullptr || module == nullptr)
      return corrupt(file.path(), "has no buffer_names or no module");
    const auto saved = entries_of(module);
    for (const PickleNode* name : names->items) {
      const auto node = saved.find(name->text);
      if (node == saved.end()) continue;
      ASSIGN_OR_RETURN(const TorchTensor tensor, file.tensor(*node->second, name->text));
      weights_->add({.name = std::string(name->text), .dtype = DType::kF32, .shape = tensor.shape},
                    [tensor, path = file.path()](std::span<uint8_t> out) -> Result<void> {
                      std::vector<float> values(out.size() / sizeof(float));
                      if (!tensor.to_f32(values)) {
                        return make_error(ErrorCode::kInvalid, "{}: a buffer of {}", path,
                                          tensor.dtype->name);
                      }
                      const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
                      std::copy(bytes, bytes + out.size(), out.begin());
                      return {};
                    });
    }
    return {};
  }

  // Weights that are not trained have no f32 copy: whole in stages 1 and 2, a part with each rank in stage 3.
  Result<void> add_frozen() {
    ASSIGN_OR_RETURN(const std::vector<Shape> shapes,
                     read_shapes(models_[0]->root().get("frozen_param_shapes")));
    std::vector<std::map<std::string_view, const PickleNode*>> fragments;  // of each rank that has a part
    for (size_t rank = 0; rank < (zero_stage_ == 3 ? models_.size() : 1); ++rank)
      fragments.push_back(entries_of(models_[rank]->root().get("frozen_param_fragments")));
    for (const Shape& shape : shapes) {
      FlatBuffer flat;
      for (size_t rank = 0; rank < fragments.size(); ++rank) {
        const TorchFile& file = *models_[rank];
        const auto node = fragments[rank].find(shape.name);
        if (node == fragments[rank].end()) return corrupt(file.path(), "has no part of " + shape.name);
        ASSIGN_OR_RETURN(TorchTensor tensor, file.tensor(*node->second, shape.name));
        if (tensor.is_contiguous()) {  // whole, it has its own shape
          tensor.shape = {tensor.elements()};
          tensor.strides = {1};
        }
        RETURN_IF_ERROR(flat.add(tensor, file.path()));
      }
      RETURN_IF_ERROR(add_slice(shape, flat, 0, flat.size()));
    }
    return {};
  }

  Result<void> add_slice(const Shape& shape, const FlatBuffer& flat, int64_t at, int64_t available) {
    const int64_t wanted = product(shape.sizes);
    if (available < wanted || at + wanted > flat.size()) {
      return refuse(
          fmt::format("{} needs {} values at {} of a buffer of {}: files of different saves, or of a "
                      "model that is cut",
                      shape.name, wanted, at, flat.size()));
    }
    std::vector<std::span<const uint8_t>> pieces;
    flat.slice(at, wanted, pieces);
    add_pieces(*weights_, {.name = shape.name, .dtype = flat.dtype(), .shape = shape.sizes},
               std::move(pieces));
    return {};
  }

  // The flat tensors of one rank.
  Result<std::vector<TorchTensor>> groups_of(size_t rank, const char* key) const {
    const TorchFile& file = *optimizers_[rank];
    const PickleNode* groups = states_[rank]->get(key);
    if (groups == nullptr || !groups->is(Kind::kList))
      return corrupt(file.path(), fmt::format("has no {}", key));
    std::vector<TorchTensor> out;
    for (const PickleNode* node : groups->items) {
      ASSIGN_OR_RETURN(TorchTensor tensor, file.tensor(*node, key));
      out.push_back(std::move(tensor));
    }
    return out;
  }

  Result<std::vector<std::vector<Shape>>> parameter_groups() const {
    const PickleNode* list = models_[0]->root().get("param_shapes");
    if (list == nullptr || !list->is(Kind::kList)) return corrupt(models_[0]->path(), "has no param_shapes");
    std::vector<std::vector<Shape>> out;
    for (const PickleNode* dict : list->items) {
      ASSIGN_OR_RETURN(out.emplace_back(), read_shapes(dict));
    }
    return out;
  }

  // Stages 1 and 2: each group of parameters is one flat buffer, cut into a part for each rank.
  Result<void> add_partitioned_groups() {
    ASSIGN_OR_RETURN(const std::vector<std::vector<Shape>> groups, parameter_groups());
    std::vector<FlatBuffer> flats(groups.size());
    for (size_t rank = 0; rank < states_.size(); ++rank) {
      ASSIGN_OR_RETURN(const auto parts, groups_of(rank, "single_partition_of_fp32_groups"));
      if (parts.size() != groups.size()) {
        return corrupt(optimizers_[rank]->path(),
                       fmt::format("has {} groups of weights, the model {}", parts.size(), groups.size()));
      }
      for (size_t g = 0; g < parts.size(); ++g)
        RETURN_IF_ERROR(flats[g].add(parts[g], optimizers_[rank]->path()));
    }
    // Padded twice in ways that only the optimizer knows: right to a multiple of two values a rank.
    const int64_t align = 2 * std::ssize(states_);
    const auto padded = [&](int64_t count) { return (count + align - 1) / align * align; };
    for (size_t g = 0; g < groups.size(); ++g) {
      int64_t at = 0;
      for (const Shape& shape : groups[g]) {
        RETURN_IF_ERROR(add_slice(shape, flats[g], at, flats[g].size() - at));
        at += product(shape.sizes);
      }
      if (padded(at) != padded(flats[g].size())) return left_over(at, flats[g].size());
    }
    return {};
  }

  // Stage 3: each parameter is cut into a part for each rank, and each rank has its parts one after another.
  Result<void> add_partitioned_parameters() {
    ASSIGN_OR_RETURN(const std::vector<std::vector<Shape>> groups, parameter_groups());
    const int64_t world = std::ssize(states_);
    std::vector<FlatBuffer> of_rank(states_.size());
    for (size_t rank = 0; rank < states_.size(); ++rank) {
      ASSIGN_OR_RETURN(const auto parts, groups_of(rank, "fp32_flat_groups"));
      for (const TorchTensor& part : parts)
        RETURN_IF_ERROR(of_rank[rank].add(part, optimizers_[rank]->path()));
      if (of_rank[rank].size() != of_rank[0].size() || of_rank[rank].dtype() != of_rank[0].dtype())
        return corrupt(optimizers_[rank]->path(), "has another number of weights than rank 0");
    }
    int64_t at = 0;
    for (const auto& group : groups) {
      for (const Shape& shape : group) {
        const int64_t part = (product(shape.sizes) + world - 1) / world;
        if (part > of_rank[0].size() - at) return left_over((at + part) * world, of_rank[0].size() * world);
        std::vector<std::span<const uint8_t>> pieces;
        for (const FlatBuffer& flat : of_rank) flat.slice(at, part, pieces);
        add_pieces(*weights_, {.name = shape.name, .dtype = of_rank[0].dtype(), .shape = shape.sizes},
                   std::move(pieces));
        at += part;
      }
    }
    return at == of_rank[0].size() ? Result<void>() : left_over(at * world, of_rank[0].size() * world);
  }

  Error left_over(int64_t used, int64_t have) const {
    return refuse(
        fmt::format("the model has {} values and its partitions {}: files of different saves", used, have));
  }

  std::string step_;
  std::unique_ptr<GatheredWeights> weights_;
  std::map<int64_t, std::string> model_files_, optimizer_files_;  // by rank
  std::vector<const TorchFile*> models_, optimizers_;             // kept by weights_
  std::vector<const PickleNode*> states_;                         // optimizer_state_dict of each rank
  int64_t zero_stage_ = 0;
};

bool has_model_states(const std::string& folder) {
  const auto names = list_folder(folder);
  return names.ok() &&
         std::ranges::any_of(*names, [](const auto& name) { return name.ends_with(kModelEnd); });
}

}  // namespace

bool is_deepspeed_folder(const std::string& folder) {
  return path_exists(folder + "/latest") || has_model_states(folder);
}

Result<std::string> deepspeed_step_folder(const std::string& folder) {
  if (has_model_states(folder)) return folder;
  ASSIGN_OR_RETURN(std::string tag, read_file(folder + "/latest"));
  const size_t end = tag.find_last_not_of(" \t\r\n");
  tag.resize(end == std::string::npos ? 0 : end + 1);
  if (tag.empty()) return make_error(ErrorCode::kCorrupt, "{}/latest: names no step", folder);
  ASSIGN_OR_RETURN(std::string step, path_within(folder, tag));
  if (!path_exists(step)) {
    return make_error(ErrorCode::kNotFound, "{}/latest: names {}, which is not there", folder, tag);
  }
  return step;
}

Result<std::unique_ptr<WeightSource>> open_deepspeed_weights(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::string step, deepspeed_step_folder(folder));
  return DeepSpeedReader(folder, step).read();
}

}  // namespace flywheel::model
