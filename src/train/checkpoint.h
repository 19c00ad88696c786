// A checkpoint on disk: a model that others can load, and what is needed to go on training.
//
//   FOLDER/shards/SAVE/rank-RRRRR.state           a rank's f32 weights and optimizer state, next step, seed
//                                                 (docs/formats/trainer_state.md)
//   FOLDER/model/config.json, model.safetensors   Hugging Face's layout; tokenizer files beside them, if any
//     of an adapter: adapter_config.json, adapter_model.safetensors, as PEFT has them (model/adapter.h)
//   FOLDER/config.yaml                            the config whose mesh the shards are of
//   FOLDER/checkpoint.json                        written last: without it there is no checkpoint
//
// Each rank that holds a part writes it on its own; rank 0 finds all of them in the folder that they share,
// and makes a checkpoint of them. It reads them as soon as their bytes are in the files, while these come to
// disk, and names them in checkpoint.json when all are there. Nobody sends anything: who holds what follows
// from the config.
//
// Matrices are in the compute dtype (what the products saw), norms and biases in f32: the engine then
// computes with the very weights that the trainer had. Errors: those of the files, of any rank; on an error
// the folder is gone, with an older checkpoint that was in it, unless a later save of the step has begun
// there: a full disk gets its room back.
//
//   RETURN_IF_ERROR(write_shard(save, rank, *part));                         // ranks that hold a part, but 0
//   RETURN_IF_ERROR(write_checkpoint(save, source, loss, std::move(part)));  // rank 0
#pragma once

#include <memory>
#include <string>

#include "kernels/dtype.h"
#include "model/decoder.h"
#include "train/checkpoint_info.h"
#include "train/config.h"
#include "train/layout.h"
#include "train/trainer_state.h"
#include "train/whole_state.h"

namespace flywheel::train {

// As every rank of a mesh knows it without asking another.
struct Save {
  std::string folder;
  int64_t number = 1;  // among the saves of its run: no shard of another attempt at this step is of this one
};

// What the checkpoints of a run have in common.
struct CheckpointSource {
  TrainConfig config;                           // of shards_config()
  Json decoder;                                 // config.json of the model, of an adapter's base
  kernels::DType dtype = kernels::DType::kF32;  // of matrices, in the model
  std::string tokenizer_folder = {};            // its files go beside the weights; may be empty
};

// The config whose mesh the shards of a run are of: where ranks of its mesh hold the same state, each writes
// a part of it, the one that it would have at stage 1 of ZeRO. The config itself where the state cannot be
// cut (optimizer_state.h), lies in files, or is an adapter's.
TrainConfig shards_config(const TrainConfig& config, const model::Decoder& decoder);

// A rank's part. One of these bytes that is there already is left as it is. Rank 0 learns why it failed, but
// of one that threw: then say so with give_up().
Result<void> write_shard(const Save& save, int rank, const TrainerSnapshot& part);
// Rank 0's own, and of all of them the checkpoint, streamed tensor by tensor out of the shards. `part` is let
// go as soon as its bytes are in the file. kDeadline where a shard does not come.
Result<void> write_checkpoint(const Save& save, const CheckpointSource& source, double loss,
                              std::shared_ptr<const TrainerSnapshot> part);

// After one of these has thrown on a rank, for what it did not do itself: rank 0 learns at once why another's
// part does not come; where it is rank 0, nothing is left of the save when the others have ended.
void give_up(const Save& save, const CheckpointSource& source, int rank, const Error& why);

// FOLDER/model of a checkpoint: the model that a whole state has, and its tokenizer, streamed tensor by
// tensor.
Result<void> write_checkpoint_model(const std::string& folder, const model::Decoder& decoder,
                                    const CheckpointSource& source, WholeState& state);
// The model alone, as in FOLDER/model.
Result<void> export_model(const std::string& folder, const model::Decoder& decoder, kernels::DType dtype,
                          std::span<const float> flat_weights);

}  // namespace flywheel::train
