// The trainer as operations that a worker runs (runtime/operation.h), and how the controller program words
// them.
//
//   train.create    setup -> ""                the trainer, new or from a checkpoint
//   train.step      cursor: the step -> StepOutcome
//   train.rewind    checkpoint, next batch, events -> ""    back to that state, on with those data
//   train.evaluate  number of sequences -> mean loss
//   train.save      folder, save, loss -> ""   each rank begins to write its part of a checkpoint
//   train.saved     folder -> CheckpointInfo   when rank 0 has made it of all; "error" says why not (full?)
//   train.trace     -> WorkerTrace of the steps that the config traces
//   train.digest    -> SHA-256 over weights and optimizer state of the rank
//
// Results travel as JSON and hold nothing that a replay would not give again: no times. Only train.saved and
// train.trace are nondeterministic: the log keeps their answers.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "train/any_trainer.h"
#include "train/checkpoint.h"

namespace flywheel::train {

// Defined with the operations, so that a program which calls them is linked with them.
extern const char* const kLibtorch;  // a need of workers
extern const char* const kCreate;
extern const char* const kStep;
extern const char* const kRewind;
extern const char* const kEvaluate;
extern const char* const kSave;
extern const char* const kSaved;
extern const char* const kTrace;
extern const char* const kDigest;

// Everything a worker needs to make its trainer.
struct TrainSetup {
  std::string config;      // resolved, as YAML
  std::string decoder;     // config.json of the model
  std::string data;        // folder of token shards
  std::string validation;  // the same, or empty
  std::string tokenizer;   // folder, or empty
  std::string weights;     // folder of a model to go on from, or empty
  std::string state;       // a trainer.state to go on from, or empty
  int64_t threads = 1;

  std::string to_json() const;
  static Result<TrainSetup> from_json(std::string_view text);
};

// Back to a checkpoint of this run, whose last write has ended, or to the run's beginning.
struct Rewind {
  std::string checkpoint;  // its folder; empty: where the run began
  int64_t batch = 0;       // that the next step reads
  int64_t events = 0;      // of the guard, so far

  std::string to_json() const;
  static Result<Rewind> from_json(std::string_view text);
};

std::string step_result_to_json(const StepResult& result);
Result<StepResult> step_result_from_json(std::string_view text);

}  // namespace flywheel::train
