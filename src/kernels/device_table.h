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
  int error = 0;                // a cudaError_t
  const char* words = nullptr;  // in place of CUDA's for `error`
};

class CublasLt;  // cublas_lt_internal.h

// Where work is started, in order. Opaque: a cudaStream_t, or the emulated device's queue.
struct DeviceStream {
  void* handle = nullptr;
  LaunchFailure* failure = nullptr;
  CublasLt* cublas = nullptr;
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

// Causal attention of B sequences of T tokens, token t of sequence b in row b * T + t. Query head h reads KV
// head h / (heads / kv_heads). head_dim up to 128; 64 and 128 leave nothing of a tile unused.
struct DeviceAttention {
  ConstRows q, k, v;  // may lie side by side in one matrix
  const int32_t*
      begins_BT;  // position in its sequence at which each token's sample begins, never falling; null: 0
  int64_t B, T, heads, kv_heads, head_dim;
  float scale;  // of scores, usually 1 / sqrt(head_dim)
  int64_t window =
      0;  // > 0: a token sees itself and the window - 1 before it; 0: all before it in its sample
};

struct DeviceTable {
  // norm.cu, the maths of norm.h. D at most 16384.
  //
  // y[t][h] = x[t][h] / rms * weight_D; writes 1 / rms to inverse_TH where it is not null. y may be x.
  void (*rms_norm)(DeviceStream, Rows y, float* inverse_TH, ConstRows x, const float* weight_D, int64_t T,
                   int64_t H, int64_t D, float epsilon);

  // attention.cu. Writes o_BTHD (rows without gaps) and lse_BHT, log(sum(exp(scores))), which the gradient
  // needs.
  void (*attention)(DeviceStream, bf16* o_BTHD, float* lse_BHT, const DeviceAttention& a);
  // attention_backward.cu. Writes dq, dk and dv; delta_BHT is working memory.
  void (*attention_backward)(DeviceStream, Rows dq, Rows dk, Rows dv, float* delta_BHT, const bf16* dout_BTHD,
                             const bf16* o_BTHD, const float* lse_BHT, const DeviceAttention& a);

  // linear.cu, the maths of linear.h; rows without gaps, any M. On a GPU the first product of a shape looks
  // for its algorithm, so each runs once before it is captured.
  //
  // y_MN = x_MK * w_NK^T + bias_N (null: none), rounded once.
  void (*linear)(DeviceStream, bf16* y_MN, const bf16* x_MK, const bf16* w_NK, const bf16* bias_N, int64_t M,
                 int64_t N, int64_t K);
  // dx_MK = dy_MN * w_NK; `adds`: that and what was in dx.
  void (*linear_dx)(DeviceStream, bf16* dx_MK, const bf16* dy_MN, const bf16* w_NK, int64_t M, int64_t N,
                    int64_t K, bool adds);
  // dw_NK += dy_MN^T * x_MK.
  void (*linear_dw)(DeviceStream, float* dw_NK, const bf16* dy_MN, const bf16* x_MK, int64_t M, int64_t N,
                    int64_t K);
};

}  // namespace flywheel::kernels
