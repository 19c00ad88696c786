// All that the next training step depends on, as one value and as bytes (docs/formats/trainer_state.md).
//
// A rank of a mesh has the state of its part of the model. join() puts the parts together as the state of the
// whole model, in the same places whatever the mesh; take_part() cuts it again for another.
//
// Pure functions, any thread. Errors: kCorrupt for bytes that are damaged, kInvalid for those of something
// else.
//
//   file.write(snapshot.header()), then each of snapshot.buffers()
//   ASSIGN_OR_RETURN(const TrainerStateView state, read_trainer_state(bytes));
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "train/guard.h"
#include "train/local_decoder.h"
#include "train/loss_scale.h"
#include "train/optimizer.h"

namespace flywheel::train {

// Taken at one moment; the copy that makes a snapshot or checkpoint asynchronous.
struct TrainerSnapshot {
  struct Buffer {
    std::string name;
    std::vector<std::byte> bytes;
    // Of state in files: mapped, and kept as it is by `owner`. `bytes` is then empty.
    std::span<const std::byte> mapped = {};
    std::shared_ptr<const void> owner = nullptr;
    std::span<const std::byte> view() const { return owner ? mapped : std::span<const std::byte>(bytes); }
  };

  int64_t next_step = 0;
  int64_t updates = 0;  // steps that were not skipped
  uint64_t seed = 0;
  std::optional<LossScale> loss_scale;  // of fp16
  GuardState guard;
  std::vector<float> weights;
  // Of weights in files: in pieces, mapped, and kept as they are by `weights_owner`. `weights` is then empty.
  std::vector<std::span<const float>> mapped_weights = {};
  std::shared_ptr<const void> weights_owner = nullptr;
  std::vector<Buffer> state;  // the optimizer's, in its order
  std::vector<std::span<const float>> weight_pieces() const;
  void let_go_of_files();  // for the next; what was mapped is no more

  // What docs/formats/trainer_state.md says: header and table, then the buffers where they lie.
  std::string header() const;
  std::vector<std::string_view> buffers() const;
  std::string bytes() const;  // all of it, joined: a copy
  std::string sha256() const;
};

// The same within bytes that somebody else keeps.
struct TrainerStateView {
  struct Buffer {
    std::string name;
    std::string_view bytes;
  };
  int64_t next_step = 0, updates = 0;
  uint64_t seed = 0;
  std::optional<LossScale> loss_scale;
  GuardState guard;
  std::string_view weights;
  std::vector<Buffer> state;
};
Result<TrainerStateView> read_trainer_state(std::string_view bytes);

// Header and table of a state whose buffers somebody else writes: `about` has all but the buffers, `sizes`
// their bytes, the weights' first. `crc` goes on with a CRC32C over all of them, in order.
std::string trainer_state_header(const TrainerStateView& about, const std::vector<uint64_t>& sizes,
                                 const std::function<uint32_t(uint32_t)>& crc);

// What sha256() has after the buffers.
std::string trainer_sha256_end(int64_t updates, const std::optional<LossScale>& loss_scale);
// SHA-256 over weights, optimizer state, updates and loss scale.
std::string trainer_sha256(const std::vector<std::span<const float>>& weights,
                           const std::vector<std::span<const std::byte>>& state, int64_t updates,
                           const std::optional<LossScale>& loss_scale);

// Gives a snapshot the sizes that the optimizer state of `weights` has, and `count` weights. Zeros where it
// was empty; else what was there, which a trainer writes over.
void make_room(const OptimizerConfig& config, const std::vector<FlatWeight>& weights, int64_t count,
               TrainerSnapshot& snapshot);
// Zeros of the sizes that weights and optimizer state of these have.
TrainerSnapshot empty_snapshot(const OptimizerConfig& config, const std::vector<FlatWeight>& weights);
// Writes the weights and state that a rank holds of its part to their places in the whole model's.
void join(const OptimizerConfig& config, const LocalDecoder& local, const std::vector<FlatWeight>& held,
          const TrainerSnapshot& part, TrainerSnapshot& whole);
// The other way: a rank's weights and state out of the whole model's. kInvalid where `whole` is that of
// another model or optimizer; then nothing was changed.
Result<void> take_part(const OptimizerConfig& config, const LocalDecoder& local,
                       const std::vector<FlatWeight>& held, const TrainerStateView& whole,
                       std::span<float> weights, const std::vector<StateBuffer>& state);
// The same from a state of exactly these weights: `put` takes them, `count` flat values, as bytes.
Result<void> take_all(const TrainerStateView& from, int64_t count,
                      const std::function<void(std::string_view)>& put,
                      const std::vector<StateBuffer>& state);

}  // namespace flywheel::train
