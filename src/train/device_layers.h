// A dense decoder as the device runs it: of each layer the weights, in the order of its kernels, read off the
// steps of model/decoder.h, which stay the one description of a layer. q, k and v are one product, and so are
// gate and up.
//
// Pure functions, any thread.
//
//   ASSIGN_OR_RETURN(const DeviceLayers layers, device_layers(decoder));   // kInvalid: other steps than
//   these
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "model/decoder.h"

namespace flywheel::train {

// Indexes into Decoder::weights; -1: there is none.
struct DeviceLayer {
  int attention_norm = -1;
  std::array<int, 3> qkv = {-1, -1, -1}, qkv_bias = {-1, -1, -1};
  int q_norm = -1, k_norm = -1;  // of each head
  int output = -1, output_bias = -1;
  int mlp_norm = -1;
  std::array<int, 2> gate_up = {-1, -1}, gate_up_bias = {-1, -1};
  int down = -1, down_bias = -1;
  int64_t window = 0;  // of attention; 0: all before
};

struct DeviceLayers {
  int embedding = -1, final_norm = -1, head = -1;  // head is the embedding where they are tied
  std::vector<DeviceLayer> layers;
};

Result<DeviceLayers> device_layers(const model::Decoder& decoder);

}  // namespace flywheel::train
