// The state of a whole model as a checkpoint has it: in a shard for each rank of the mesh that holds a part,
// or in the one trainer.state of older ones (docs/formats/checkpoint.md). Either way its buffers are read as
// those of one file.
//
// Files are mapped: what is resident of them is the page cache's, given up under pressure. A file's checksum
// is compared when the first byte of it is wanted, so a rank that takes its part reads the shards that it
// needs alone; one that only says what there is, is the first.
//
// Threads: one, but for check(). Errors: kNotFound, kCorrupt (naming the file), kInvalid: shards that are not
// of one state, or of another layout than config.yaml beside them says.
//
//   ASSIGN_OR_RETURN(WholeState state, WholeState::open("step-00000100"));
//   RETURN_IF_ERROR(state.read(0, 0, bytes));
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/result.h"
#include "train/config.h"
#include "train/layout.h"
#include "train/trainer_state.h"

namespace flywheel::train {

// Where the shard of a rank lies within a checkpoint. `save`: which of its run's saves made it, so that what
// an earlier one left in the folder is not taken for it.
std::string shard_name(int64_t save, int rank);
// The config whose mesh the shards are of.
std::string shard_config_path(const std::string& checkpoint);
// config.json of the model, of an adapter's base.
Result<Json> checkpoint_decoder(const std::string& checkpoint);

// Bytes that a rank keeps of the whole state, by ascending own place. Buffer 0 is the weights, the
// optimizer's follow.
struct StatePiece {
  size_t whole_buffer = 0, own_buffer = 0;
  uint64_t whole_byte = 0, own_byte = 0, bytes = 0;
};
std::vector<StatePiece> state_pieces(const OptimizerConfig& config, const LocalDecoder& local,
                                     const std::vector<FlatWeight>& held);
// Bytes of its buffers. `values`: of the flat weights.
std::vector<uint64_t> state_sizes(const OptimizerConfig& config, const std::vector<FlatWeight>& held,
                                  int64_t values);

class WholeState {
 public:
  static Result<WholeState> open(const std::string& checkpoint);
  // Shards that no checkpoint.json names yet. `files`: of layout.holders(), in their order. `maps`: these
  // files where they are open already, under whatever name; else none.
  static Result<WholeState> of_shards(const OptimizerConfig& config, const Layout& layout,
                                      const std::vector<std::string>& files,
                                      std::vector<MappedFile> maps = {});
  // A state that others keep. `read` gives bytes of a buffer from `at` on, with zeros between weights.
  using Read = std::function<Result<void>(size_t buffer, uint64_t at, std::span<char> out)>;
  static WholeState of_reader(TrainerStateView about, std::vector<uint64_t> sizes, Read read);

  // Reads every file against its checksum. From then on any thread may read.
  Result<void> check();
  // All but the bytes of the buffers.
  const TrainerStateView& about() const { return about_; }
  const std::vector<uint64_t>& sizes() const { return sizes_; }
  // Written before the SHA-256 of a state had what it has now.
  bool old() const { return old_; }
  // What nobody keeps (the values between weights) is zeros. CHECKs that it is within the buffer.
  Result<void> read(size_t buffer, uint64_t at, std::span<char> out);
  // Of trainer_sha256(), whatever the mesh. Reads everything; `progress` is told of each piece's bytes, and
  // may be empty.
  Result<std::string> sha256(const std::function<void(uint64_t)>& progress = {});

 private:
  struct File {
    std::string path;
    std::vector<uint64_t> sizes;  // that its buffers must have; empty: any
    bool looked_at = false;
    MappedFile map;
    std::vector<std::string_view> buffers;
  };
  struct Piece : StatePiece {
    size_t file = 0;
  };
  Result<void> open_whole(const std::string& path);
  Result<void> open_shards(const OptimizerConfig& config, const Layout& layout,
                           const std::vector<std::string>& files, std::vector<MappedFile> maps);
  void order_pieces();
  // Bytes of a buffer where they lie, one run after the other.
  Result<void> visit(size_t buffer, uint64_t at, uint64_t bytes,
                     const std::function<void(std::string_view)>& take);
  Result<TrainerStateView> look(File& file);
  Result<void> look_once(File& file);

  TrainerStateView about_;
  std::vector<uint64_t> sizes_;
  std::vector<File> files_;
  std::vector<std::vector<Piece>> pieces_;  // by buffer, ascending in whole_byte; none lies over another
  Read reader_;                             // in place of files
  bool old_ = false;
};

// kInvalid where a state is not of the model with these weights and of this optimizer.
Result<void> check_whole(const OptimizerConfig& config, const std::vector<FlatWeight>& all,
                         const WholeState& whole);
// A rank's weights and state out of the whole model's. What check_whole() refuses changes nothing.
Result<void> take_part(const OptimizerConfig& config, const LocalDecoder& local,
                       const std::vector<FlatWeight>& held, WholeState& whole, std::span<float> weights,
                       const std::vector<StateBuffer>& state);

}  // namespace flywheel::train
