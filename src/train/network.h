// Runs a decoder's steps (model/decoder.h) over whole sequences, with gradients.
//
// The steps are those that the engine runs, and so are the kernels: with the same weights in the same dtype
// the log-probabilities are equal bit for bit.
//
// Ownership: borrows decoder and parameters. Threads: one at a time.
//
//   Network network(decoder, parameters, {}, pool);
//   double loss = network.train({.sequences = 4, .length = 256, .tokens = ...});   // adds to gradients
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "model/decoder.h"
#include "train/parameters.h"

namespace flywheel::train {

// `tokens` is [sequences, length + 1]: inputs are the first `length`, targets the last.
struct Sequences {
  int64_t sequences = 0, length = 0;
  std::span<const int32_t> tokens;
};

class Network {
 public:
  struct Options {
    bool recompute =
        false;  // keep only what goes from layer to layer, and run a layer again for its gradient
  };
  Network(const model::Decoder& decoder, Parameters& parameters, Options options, ThreadPool& pool);
  ~Network();

  // Sum of the losses of all tokens, in nats; its gradient is added to the parameters' gradients.
  double train(const Sequences& input);
  // The same sum without gradients. logprobs, if not null, gets [sequences * length].
  double evaluate(const Sequences& input, float* logprobs = nullptr);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Operations of one forward and backward pass over a token in sequences of `length`: what a share of the
// machine's limit is counted from. Recomputation is not useful work and is not in it.
double flop_per_token(const model::Decoder& decoder, int64_t length);

}  // namespace flywheel::train
