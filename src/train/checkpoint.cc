#include "train/checkpoint.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <thread>

#include "base/deadline.h"
#include "base/file.h"
#include "base/log.h"
#include "model/adapter.h"
#include "model/safetensors.h"
#include "train/adapter_config.h"
#include "train/optimizer_state.h"

namespace flywheel::train {
namespace {

using kernels::DType;

constexpr int64_t kShardMs = 300'000;  // more that the slowest rank takes than the first; calls have 600'000
constexpr int64_t kLookMs = 5;         // between two looks for it
constexpr size_t kAtOnce = 8 << 20;    // bytes of a shard that the disk begins with while the next are copied

// Files that make a folder a tokenizer, for `transformers` and for model/tokenizer.h.
constexpr const char* kTokenizerFiles[] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json",
    "merges.txt",     "chat_template.jinja",   "generation_config.json"};

// Values from `first` on of the flat buffer of all weights.
using ReadWeights = std::function<Result<void>(uint64_t first, std::span<float> out)>;

// The values of a weight that lie together, in the file's dtype.
Result<void> convert(const ReadWeights& read, int64_t offset, DType dtype, std::vector<uint8_t>& bytes) {
  constexpr int64_t kChunk = 1 << 18;  // values
  const int64_t width = kernels::block_bytes(dtype), count = std::ssize(bytes) / width;
  std::vector<float> chunk(static_cast<size_t>(std::min(kChunk, count)));
  for (int64_t at = 0; at < count; at += kChunk) {
    const int64_t now = std::min(kChunk, count - at);
    RETURN_IF_ERROR(
        read(static_cast<uint64_t>(offset + at), std::span(chunk).first(static_cast<size_t>(now))));
    kernels::from_f32(bytes.data() + at * width, chunk.data(), dtype, now);
  }
  return {};
}

// One weight of the model is in memory at a time.
Result<void> write_model(const std::string& folder, const model::Decoder& decoder, DType dtype,
                         const ReadWeights& read) {
  RETURN_IF_ERROR(make_folders(folder));
  std::vector<model::Tensor> tensors;
  std::map<std::string, int64_t> offsets;
  for (const FlatWeight& weight : flat_weights(decoder)) {
    model::Tensor tensor;
    tensor.name = weight.name, tensor.shape = weight.shape;
    tensor.dtype = weight.matrix ? dtype : DType::kF32;
    offsets[weight.name] = weight.offset;
    tensors.push_back(std::move(tensor));
  }
  const Json config =
      model::decoder_config_to_hf(decoder.config, dtype == DType::kBF16 ? "bfloat16" : "float32");
  RETURN_IF_ERROR(write_file(folder + "/config.json", config.dump(2) + "\n"));
  std::vector<uint8_t> bytes;
  const auto bytes_of = [&](const model::Tensor& tensor) -> Result<std::span<const uint8_t>> {
    bytes.resize(static_cast<size_t>(tensor.elements() * kernels::block_bytes(tensor.dtype)));
    RETURN_IF_ERROR(convert(read, offsets.at(tensor.name), tensor.dtype, bytes));
    return std::span<const uint8_t>(bytes);
  };
  return model::write_safetensors_folder(folder, tensors, {.bytes = bytes_of});
}

// An adapter alone, as PEFT loads it, in the dtype that products saw.
Result<void> write_adapter(const std::string& folder, const model::Decoder& decoder, DType dtype,
                           const ReadWeights& read, const std::map<std::string, std::string>& files) {
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<model::Tensor> tensors;
  for (const FlatWeight& weight : flat_weights(decoder)) {
    if (weight.count == 0) continue;
    model::Tensor tensor;
    tensor.name = weight.name, tensor.shape = weight.shape, tensor.dtype = dtype;
    bytes.emplace_back(static_cast<size_t>(weight.count * kernels::block_bytes(dtype)));
    RETURN_IF_ERROR(convert(read, weight.offset, dtype, bytes.back()));
    tensor.bytes = bytes.back();
    tensors.push_back(std::move(tensor));
  }
  return model::write_adapter_folder(folder, *decoder.adapter, tensors, files);
}

// The model and its tokenizer, for others.
Result<void> write_model_folder(const std::string& folder, const model::Decoder& decoder,
                                const CheckpointSource& source, const ReadWeights& read) {
  std::map<std::string, std::string> files;
  for (const char* name : kTokenizerFiles) {
    const std::string from = source.tokenizer_folder + "/" + name;
    if (source.tokenizer_folder.empty() || !path_exists(from)) continue;
    ASSIGN_OR_RETURN(files[name], read_file(from));
  }
  if (decoder.adapter.has_value()) return write_adapter(folder, decoder, source.dtype, read, files);
  RETURN_IF_ERROR(write_model(folder, decoder, source.dtype, read));
  for (const auto& [name, text] : files) RETURN_IF_ERROR(write_file(folder + "/" + name, text));
  return {};
}

// Where a rank says why its shard does not come.
std::string failure_path(const std::string& shard) {
  return shard + ".failed";
}

// A disk without room for the words has some for a name: an empty file says it too.
void mark_failed(const std::string& shard, const std::string& why) {
  const std::string path = failure_path(shard);
  if (write_file(path, why).ok()) return;
  // Rank 0 may have read it and cleared up before it was synced.
  const bool cleared = !path_exists(std::filesystem::path(path).parent_path().string());
  if (cleared || write_file(path, "").ok()) return;
  LOG_WARN("{} cannot be written ({}), nor {}: rank 0 waits for it for {} s", shard, why, path,
           kShardMs / 1000);
}

bool is_there(const std::string& path, const std::string& header, uint64_t size) {
  const auto file = MappedFile::open(path);
  return file.ok() && file->size() == size && file->bytes().starts_with(header);
}

// Where a shard can be read when all its bytes are in the file, before they are on disk. Rank 0 alone takes
// the name away: on a file system of several hosts what it has mapped would go with the last name of a file.
std::string written_path(const std::string& shard) {
  return shard + ".written";
}

// A rank's shard on its way to the disk. What fails rank 0 learns from a file beside it.
class ShardFile {
 public:
  ShardFile(const Save& save, int rank) : path_(save.folder + "/" + shard_name(save.number, rank)) {}

  // All bytes are in the file, where others can read them. One of these bytes that is there already is left
  // as it is.
  Result<void> write(const TrainerSnapshot& part) { return told(try_write(part)); }
  // They are on disk, under the shard's name. Once is enough.
  Result<void> commit() { return told(try_commit()); }

 private:
  Result<void> try_write(const TrainerSnapshot& part) {
    const std::string header = part.header();
    uint64_t size = header.size();
    for (const std::string_view buffer : part.buffers()) size += buffer.size();
    if (is_there(path_, header, size)) return {};
    (void)remove_all(failure_path(path_));
    ASSIGN_OR_RETURN(file_, AtomicFile::create(path_));
    RETURN_IF_ERROR(file_->write(header));
    for (std::string_view buffer : part.buffers()) {
      for (; !buffer.empty(); buffer.remove_prefix(std::min(kAtOnce, buffer.size()))) {
        RETURN_IF_ERROR(file_->write(buffer.substr(0, kAtOnce)));
        file_->start_sync();
      }
    }
    // Without links, or where a killed attempt has left one, others read it when it is on disk.
    return file_->link_as(written_path(path_)).ok() ? Result<void>() : try_commit();
  }
  Result<void> try_commit() {
    if (!file_.has_value()) return {};
    RETURN_IF_ERROR(file_->commit());
    file_.reset();
    return {};
  }
  // Where the folder was there and is gone, rank 0 has given up: nothing of the save is to be left.
  Result<void> told(Result<void> done) {
    if (done.ok()) return done;
    const bool given_up =
        file_.has_value() && !path_exists(std::filesystem::path(path_).parent_path().string());
    file_.reset();  // a full disk has room for the words then
    if (!given_up) mark_failed(path_, done.error().message);
    return done;
  }

  std::string path_;
  std::optional<AtomicFile> file_;  // what is not on disk yet
};

// Until each is `found`, or its rank has said why not.
Result<void> wait_for(const std::vector<std::string>& shards,
                      const std::function<bool(const std::string& shard)>& found) {
  const Deadline deadline = Deadline::after_ms(kShardMs);
  Result<void> all;
  for (const std::string& shard : shards) {
    while (!found(shard)) {
      if (const auto why = read_file(failure_path(shard)); why.ok()) {
        all = make_error(
            ErrorCode::kIo, "{}",
            why->empty() ? shard + " could not be written, and there was no room to say why" : *why);
        break;
      }
      if (deadline.expired()) {
        return make_error(ErrorCode::kDeadline,
                          "{} did not come within {} s: is the folder of the run the same one on all hosts?",
                          shard, kShardMs / 1000);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(kLookMs));
    }
  }
  return all;
}

// Removes what is in a folder, but for what is to stay.
Result<void> clear_folder(const std::string& folder,
                          const std::function<bool(const std::string& name)>& stays) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, list_folder(folder));
  for (const std::string& name : names) {
    if (!stays(name)) RETURN_IF_ERROR(remove_all(folder + "/" + name));
  }
  return {};
}

// Away with what saves of this step before `number` wrote, or a killed one had begun. In a replay another
// rank may be at a later one already.
Result<void> clear(const std::string& folder, int64_t number) {
  RETURN_IF_ERROR(remove_checkpoint_info(folder));  // first: from here on there is no checkpoint
  RETURN_IF_ERROR(clear_folder(folder, [](const std::string& name) { return name == "shards"; }));
  return clear_folder(folder + "/shards", [&](const std::string& name) {
    return std::strtoll(name.c_str(), nullptr, 10) >= number;
  });
}

// A save that failed leaves nothing, and its folder goes with what is in it, unless a later one has begun
// there.
void remove_save(const Save& save) {
  (void)clear(save.folder, save.number + 1);
  std::error_code error;
  std::filesystem::remove(save.folder + "/shards", error);  // if it is empty
  std::filesystem::remove(save.folder, error);
}

Result<Layout> layout_of(const CheckpointSource& source) {
  ASSIGN_OR_RETURN(const model::DecoderConfig decoder, model::decoder_config_from_hf(source.decoder));
  return make_layout(source.config, decoder_of(source.config, decoder));
}

// The files of all parts, within the folder, by ascending rank.
std::vector<std::string> shard_names(const Save& save, const Layout& layout) {
  std::vector<std::string> names;
  for (const int rank : layout.holders()) names.push_back(shard_name(save.number, rank));
  return names;
}

// All but rank 0's own are on disk, or nobody is writing them any more. Where not even the folder can be
// made, nobody's comes.
Result<void> wait_for_others(const Save& save, const std::vector<std::string>& names) {
  if (!path_exists(save.folder)) return {};
  std::vector<std::string> others;
  for (size_t i = 1; i < names.size(); ++i) others.push_back(save.folder + "/" + names[i]);
  return wait_for(others, path_exists);
}

Result<void> wait_for_all(const Save& save, const std::vector<std::string>& names, ShardFile& own) {
  RETURN_IF_ERROR(own.commit());
  return wait_for_others(save, names);
}

// The shards, as soon as all their bytes are in the files.
Result<std::vector<MappedFile>> open_written(const std::vector<std::string>& paths) {
  std::vector<MappedFile> files;
  Result<void> opened;
  RETURN_IF_ERROR(wait_for(paths, [&](const std::string& path) {
    for (const std::string& name : {path, written_path(path)}) {
      Result<MappedFile> file = MappedFile::open(name);
      if (file.ok()) {
        files.push_back(std::move(*file));
        return true;
      }
      if (file.error().code == ErrorCode::kNotFound) continue;
      opened = file.error();
      return true;
    }
    return false;
  }));
  if (!opened.ok()) return opened.error();
  return files;
}

// The state that all shards make, each read against its checksum, while they come to disk.
Result<WholeState> read_shards(const Save& save, const CheckpointSource& source, const Layout& layout,
                               const std::vector<std::string>& names, ShardFile& own) {
  std::vector<std::string> paths;
  for (const std::string& name : names) paths.push_back(save.folder + "/" + name);
  const auto read = [&](std::vector<MappedFile> files) -> Result<WholeState> {
    ASSIGN_OR_RETURN(WholeState state,
                     WholeState::of_shards(source.config.optimizer, layout, paths, std::move(files)));
    RETURN_IF_ERROR(state.check());
    return state;
  };
  ASSIGN_OR_RETURN(std::vector<MappedFile> files, open_written(paths));
  if (Result<WholeState> state = read(std::move(files)); state.ok()) return state;
  // What another host has written may be whole here only when it is on the disk that they share.
  RETURN_IF_ERROR(wait_for_all(save, names, own));
  return read({});
}

Result<void> commit(const Save& save, const CheckpointSource& source, const Layout& layout, double loss,
                    const std::vector<std::string>& names, ShardFile& own) {
  ASSIGN_OR_RETURN(WholeState state, read_shards(save, source, layout, names, own));
  CheckpointInfo info{
      .step = state.about().next_step, .loss = loss, .shards = names, .decoder = source.decoder};
  // Beside the model: both take their time.
  std::future<Result<std::string>> sha256 = std::async(std::launch::async, [&] { return state.sha256(); });
  // A replay writes what is there already, and somebody may be reading it.
  if (const auto there = read_checkpoint_info(save.folder); there.ok()) {
    ASSIGN_OR_RETURN(info.sha256, sha256.get());
    if (there->step == info.step && there->sha256 == info.sha256) {
      RETURN_IF_ERROR(wait_for_all(save, names, own));
      if (there->shards == names) return {};
      return remove_all(fmt::format("{}/shards/{}", save.folder, save.number));
    }
  }
  RETURN_IF_ERROR(clear(save.folder, save.number));
  RETURN_IF_ERROR(write_checkpoint_model(save.folder, layout.decoder, source, state));
  RETURN_IF_ERROR(write_file(shard_config_path(save.folder), dump_config(source.config) + "\n"));
  RETURN_IF_ERROR(wait_for_all(save, names, own));
  RETURN_IF_ERROR(clear_folder(fmt::format("{}/shards/{}", save.folder, save.number), [&](const auto& name) {
    return std::ranges::any_of(names, [&](const std::string& shard) { return shard.ends_with("/" + name); });
  }));
  if (info.sha256.empty()) {
    ASSIGN_OR_RETURN(info.sha256, sha256.get());
  }
  return write_checkpoint_info(save.folder, info, state.about());
}

}  // namespace

TrainConfig shards_config(const TrainConfig& config, const model::Decoder& decoder) {
  TrainConfig shared = config;
  shared.mesh.zero = 1, shared.mesh.zero_group = 0;
  if (config.mesh.stage() > 0 || shared.mesh.stage() == 0) return config;
  if (config.adapter.on() || config.offload.in_files() || needs_whole(config.optimizer.type)) return config;
  return make_layout(shared, decoder).ok() ? shared : config;
}

Result<void> write_shard(const Save& save, int rank, const TrainerSnapshot& part) {
  ShardFile file(save, rank);
  RETURN_IF_ERROR(file.write(part));
  return file.commit();
}

Result<void> write_checkpoint(const Save& save, const CheckpointSource& source, double loss,
                              std::shared_ptr<const TrainerSnapshot> part) {
  ASSIGN_OR_RETURN(const Layout layout, layout_of(source));
  const std::vector<std::string> names = shard_names(save, layout);
  ShardFile own(save, 0);
  Result<void> done = own.write(*part);
  part.reset();
  if (done.ok()) done = commit(save, source, layout, loss, names, own);
  if (done.ok()) return done;
  if (done.error().code != ErrorCode::kDeadline) (void)wait_for_others(save, names);
  remove_save(save);
  return done;
}

void give_up(const Save& save, const CheckpointSource& source, int rank, const Error& why) {
  if (rank > 0) {
    const std::string shard = save.folder + "/" + shard_name(save.number, rank);
    return mark_failed(shard, shard + ": " + why.message);
  }
  if (const Result<Layout> layout = layout_of(source); layout.ok())
    (void)wait_for_others(save, shard_names(save, *layout));
  remove_save(save);
}

Result<void> write_checkpoint_model(const std::string& folder, const model::Decoder& decoder,
                                    const CheckpointSource& source, WholeState& state) {
  return write_model_folder(folder + "/model", decoder, source, [&](uint64_t first, std::span<float> out) {
    return state.read(0, first * sizeof(float), {reinterpret_cast<char*>(out.data()), out.size_bytes()});
  });
}

Result<void> export_model(const std::string& folder, const model::Decoder& decoder, DType dtype,
                          std::span<const float> flat_weights) {
  return write_model(folder, decoder, dtype, [&](uint64_t first, std::span<float> out) -> Result<void> {
    std::ranges::copy(flat_weights.subspan(first, out.size()), out.begin());
    return {};
  });
}

}  // namespace flywheel::train
