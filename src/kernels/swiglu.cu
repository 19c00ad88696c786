// SwiGLU on a device: the maths of swiglu.h over rows of gate and up side by side.
//
// Bytes a value of y: forward 6 (gate and up read, y written), backward 10 (dy, gate, up; dgate, dup), 12
// with y again. Memory is the limit: an exp and a division a value, some 20 instructions for 6 bytes.
#include "kernels/device_code.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

constexpr int kThreads = 256;

__device__ inline float sigmoid(float x) {
  return fast_divide(1.0f, 1.0f + fast_exp(-x));
}

__global__ void __launch_bounds__(kThreads)
    swiglu_vectors(bf16* y_TF, const bf16* gate_up_T2F, int64_t T, int64_t F) {
  const int64_t each = F / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= T * each) return;
  const bf16* gate = gate_up_T2F + i / each * 2 * F + i % each * 8;
  const Vec8 g = load8(gate), u = load8(gate + F);
  Vec8 y;
  UNROLL for (int j = 0; j < 8; ++j) {
    const float gv = to_float(g.v[j]);
    y.v[j] = to_bf16(gv * sigmoid(gv) * to_float(u.v[j]));
  }
  store8(y_TF + i * 8, y);
}

// silu'(g) = s + g * s * (1 - s)
__global__ void __launch_bounds__(kThreads)
    swiglu_backward_vectors(bf16* dgate_up_T2F, bf16* y_TF, const bf16* dy_TF, const bf16* gate_up_T2F,
                            int64_t T, int64_t F) {
  const int64_t each = F / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= T * each) return;
  const int64_t at = i / each * 2 * F + i % each * 8;
  const Vec8 g = load8(gate_up_T2F + at), u = load8(gate_up_T2F + at + F), d = load8(dy_TF + i * 8);
  Vec8 dgate, dup, y;
  UNROLL for (int j = 0; j < 8; ++j) {
    const float gv = to_float(g.v[j]), uv = to_float(u.v[j]), dv = to_float(d.v[j]);
    const float s = sigmoid(gv), silu = gv * s;
    dgate.v[j] = to_bf16(dv * uv * fmaf(silu, 1.0f - s, s));
    dup.v[j] = to_bf16(dv * silu);
    y.v[j] = to_bf16(silu * uv);
  }
  store8(dgate_up_T2F + at, dgate);
  store8(dgate_up_T2F + at + F, dup);
  if (y_TF != nullptr) store8(y_TF + i * 8, y);
}

void swiglu(DeviceStream stream, bf16* y_TF, const bf16* gate_up_T2F, int64_t T, int64_t F) {
  DEVICE_CHECK(F > 0 && F % 8 == 0);
  if (T == 0) return;
  LAUNCH(swiglu_vectors, static_cast<unsigned>(ceil_div(T * F / 8, kThreads)), kThreads, 0, stream)
  (y_TF, gate_up_T2F, T, F);
}

void swiglu_backward(DeviceStream stream, bf16* dgate_up_T2F, bf16* y_TF, const bf16* dy_TF,
                     const bf16* gate_up_T2F, int64_t T, int64_t F) {
  DEVICE_CHECK(F > 0 && F % 8 == 0);
  if (T == 0) return;
  LAUNCH(swiglu_backward_vectors, static_cast<unsigned>(ceil_div(T * F / 8, kThreads)), kThreads, 0, stream)
  (dgate_up_T2F, y_TF, dy_TF, gate_up_T2F, T, F);
}

}  // namespace

void add_swiglu(DeviceTable& table) {
  table.swiglu = swiglu;
  table.swiglu_backward = swiglu_backward;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
