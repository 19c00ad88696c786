// The kernels that a Device runs (device.h): one table of launchers, of which there are two instances.
//
// NAME.cu is compiled twice: by nvcc for GPUs, and by the host's compiler (NAME.emulated.cc, one line) for
// the emulated device, on which tests run the same code. device_code.h is what the two have in common. Each
// .cu ends in an add_NAME() that enters its launchers here; device_table.cu calls all of them.
//
// Every pointer is to the device's memory. A launcher starts work on the stream and returns; what fails is
// told by the next Device::synchronize(). Sums have a fixed order: the same input gives the same bits on the
// same device. Shapes: T rows (tokens), D width, F width of the feed-forward layer, V vocabulary, H heads.
// Unless it is told otherwise, widths are multiples of 8 and pointers are 16-byte aligned; a launcher ends
// the program on others.
//
//   const DeviceTable& k = device.kernels();
//   k.rms_norm(device.stream(), y, inverse, x, weight, T, 1, D, 1e-5f);
#pragma once

#include <cstdint>

namespace flywheel::kernels {

// A bfloat16 in memory; to_float() and to_bf16() of device_code.h, or dtype.h's functions on the bits.
struct bf16 {
  uint16_t bits;
};

// The first launch that failed since the last synchronize().
struct LaunchFailure {
  const char* kernel = nullptr;
  int error = 0;  // a cudaError_t
};

// Where work is started, in order. Opaque: a cudaStream_t, or the emulated device's queue.
struct DeviceStream {
  void* handle = nullptr;
  LaunchFailure* failure = nullptr;
};

// Rows of several heads: token t's H rows of D lie one after another at data + t * stride.
struct Rows {
  bf16* data;
  int64_t stride;
};
struct ConstRows {
  const bf16* data;
  int64_t stride;
  ConstRows(const bf16* d, int64_t s) : data(d), stride(s) {}
  ConstRows(Rows rows) : data(rows.data), stride(rows.stride) {}  // NOLINT: what may be written may be read
};

struct DeviceTable {
  // norm.cu, the maths of norm.h. D at most 16384.
  //
  // y[t][h] = x[t][h] / rms * weight_D; writes 1 / rms to inverse_TH where it is not null. y may be x.
  void (*rms_norm)(DeviceStream, Rows y, float* inverse_TH, ConstRows x, const float* weight_D, int64_t T,
                   int64_t H, int64_t D, float epsilon);
};

}  // namespace flywheel::kernels
