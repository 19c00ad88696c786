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

// What the host says of one optimizer step. In device memory, so that a captured graph reads each step's own.
struct StepTerms {
  double times = 1;      // what the gradient of the mean loss is multiplied by: targets * loss scale
  double clip_norm = 0;  // 0: no clipping
  double clip_epsilon = 0;
  // adamw.h's terms: step = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t).
  float beta1 = 0.9f, beta2 = 0.95f, lr = 0, step = 0, root = 1, epsilon = 1e-8f, l2 = 0;
  int32_t skips_not_finite = 0;  // 1: where the norm is no number, the step changes nothing
};

// What the device finds in the gradients, and does about it.
struct StepNorm {
  double norm;           // sqrt(sum of squares) / times, before clipping
  float gradient_scale;  // multiplies each gradient: clipping / times
  int32_t applies;       // 0: the step is left out
};

// A part of flat buffers, at most kAdamWPiece values, that one block updates. adamw_pieces() cuts them.
struct AdamWPiece {
  int64_t begin;
  int32_t count;
  float weight_decay;
};
inline constexpr int64_t kAdamWPiece = 4096;

// Floats of workspace for rms_norm_backward (rows = T * H, width D) and bias_backward (rows T, width N);
// doubles for gradient_norm. Sums over rows are made in so many parts at most, and the parts added in order.
inline constexpr int64_t kRowParts = 1056, kNormParts = 1056;
constexpr int64_t row_workspace(int64_t rows, int64_t width) {
  return (rows < kRowParts ? rows : kRowParts) * width;
}

// Causal attention of B sequences of T tokens, token t of sequence b in row b * T + t. Query head h reads KV
// head h / (heads / kv_heads). head_dim up to 128; 64 and 128 leave nothing of a tile unused.
struct DeviceAttention {
  ConstRows q, k, v;  // may lie side by side in one matrix
  // Position in its sequence at which each token's sample begins, never falling; null: 0.
  const int32_t* begins_BT;
  int64_t B, T, heads, kv_heads, head_dim;
  float scale;  // of scores, usually 1 / sqrt(head_dim)
  // > 0: a token sees itself and the window - 1 before it; 0: all before it in its sample.
  int64_t window = 0;
};

struct DeviceTable {
  // norm.cu, the maths of norm.h. D at most 16384.
  //
  // y[t][h] = x[t][h] / rms * weight_D; writes 1 / rms to inverse_TH where it is not null. y may be x.
  void (*rms_norm)(DeviceStream, Rows y, float* inverse_TH, ConstRows x, const float* weight_D, int64_t T,
                   int64_t H, int64_t D, float epsilon);
  // sum = x + delta rounded, y = rms_norm of sum. sum may be x or delta.
  void (*add_rms_norm)(DeviceStream, bf16* y_TD, bf16* sum_TD, float* inverse_T, const bf16* x_TD,
                       const bf16* delta_TD, const float* weight_D, int64_t T, int64_t D, float epsilon);
  // dx = the gradient of x, plus `residual` where its data is not null; dx may be dy, x or residual.
  // inverse_TH is forward's. dweight_D, if not null, is added to, and `workspace` has row_workspace(T * H, D)
  // floats.
  void (*rms_norm_backward)(DeviceStream, Rows dx, float* dweight_D, float* workspace, ConstRows dy,
                            ConstRows residual, ConstRows x, const float* inverse_TH, const float* weight_D,
                            int64_t T, int64_t H, int64_t D);

  // rope.cu: x in place; `table` is a RopeTable's rows (cos_row(0)), `half` a multiple of 8, sign 1 (forward)
  // or -1. positions_T lie below the table's max_positions(). Queries and keys side by side are one call.
  void (*rope)(DeviceStream, Rows x, const int32_t* positions_T, const float* table, int64_t T, int64_t H,
               int64_t D, int64_t half, float sign);

  // swiglu.cu: a row of gate_up is F values of gate, then F of up.
  void (*swiglu)(DeviceStream, bf16* y_TF, const bf16* gate_up_T2F, int64_t T, int64_t F);
  // dgate_up may be gate_up. y_TF, if not null, gets forward's result again.
  void (*swiglu_backward)(DeviceStream, bf16* dgate_up_T2F, bf16* y_TF, const bf16* dy_TF,
                          const bf16* gate_up_T2F, int64_t T, int64_t F);

  // cross_entropy.cu: loss_R = -log softmax(logits)[target], and 0 where the target is kNoTarget (-1).
  // dlogits, if not null, gets the gradient of the losses' sum times `scale`, zeros in the columns from V to
  // the stride; it may be logits. V is any, the stride of a row a multiple of 8.
  void (*softmax_cross_entropy)(DeviceStream, bf16* dlogits_RV, float* loss_R, const bf16* logits_RV,
                                const int32_t* targets_R, float scale, int64_t R, int64_t V, int64_t stride);

  // adamw.cu, the maths of adamw.h.
  //
  // norm from the sum of squares of g, in f64; `workspace` has kNormParts doubles.
  void (*gradient_norm)(DeviceStream, StepNorm* norm, double* workspace, const float* g, int64_t n,
                        const StepTerms* terms);
  // The weights of `count` pieces change, with both moments; `copy`, if not null, gets them rounded. norm: of
  // gradient_norm(). Nothing changes where its step does not apply.
  void (*adamw)(DeviceStream, float* weights, float* m, float* v, const float* g, bf16* copy,
                const AdamWPiece* pieces, int64_t count, const StepTerms* terms, const StepNorm* norm);

  // embedding.cu: rows of the table; a row of zeros for kForeignToken (-1). Other ids lie in the table.
  void (*embedding)(DeviceStream, bf16* y_TD, const int32_t* ids_T, const bf16* table_VD, int64_t T,
                    int64_t D);
  // dtable_VD[ids[t]] += dy[t], summed in order of t; order and run_end are token_order()'s (embedding.h).
  void (*embedding_backward)(DeviceStream, float* dtable_VD, const int32_t* ids_T, const int32_t* order_T,
                             const int32_t* run_end_T, const bf16* dy_TD, int64_t T, int64_t D);

  // elementwise.cu. n is any number.
  //
  // y_TN += bias_N, rounded.
  void (*add_bias)(DeviceStream, bf16* y_TN, const float* bias_N, int64_t T, int64_t N);
  // dbias_N += sum over t of dy; `workspace` has row_workspace(T, N) floats. The stride is that of a row of
  // dy.
  void (*bias_backward)(DeviceStream, float* dbias_N, float* workspace, const bf16* dy_TN, int64_t stride,
                        int64_t T, int64_t N);
  void (*add)(DeviceStream, bf16* y, const bf16* a, const bf16* b, int64_t n);  // y may be a or b
  void (*narrow)(DeviceStream, bf16* y, const float* x, int64_t n);             // to nearest even
  void (*widen)(DeviceStream, float* y, const bf16* x, int64_t n);
  void (*fill)(DeviceStream, float* y, float value, int64_t n);
  void (*add_scaled)(DeviceStream, float* y, const float* a, const float* b, float factor,
                     int64_t n);  // a + factor b
  // *total += sum of x, in f64.
  void (*sum)(DeviceStream, double* total, const float* x, int64_t n);

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
