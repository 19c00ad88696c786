// What of a training config a device can do, until it can do all of it.
//
// Pure functions, any thread. Errors: kInvalid; the message begins with the key.
//
//   RETURN_IF_ERROR(check_device(config, decoder));                    // with device: gpu
#pragma once

#include "base/result.h"
#include "model/decoder.h"
#include "train/config.h"

namespace flywheel::train {

// Nothing to say where device is cpu or auto.
Result<void> check_device(const TrainConfig& config, const model::Decoder& decoder);

// What `auto` is on a machine with so many GPUs; anything else stays.
DeviceChoice choose_device(const TrainConfig& config, const model::Decoder& decoder, int gpus);

}  // namespace flywheel::train
