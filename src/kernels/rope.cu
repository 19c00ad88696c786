// Rotary embedding on a device: the maths of rope.h in place on bf16 heads. A thread turns 8 pairs.
//
// Bytes of a head of D: 4 D (read and written once); the angles, 8 bytes a pair, come from cache for all
// heads of a token but the first. Memory is the limit.
#include "kernels/device_code.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    rope_pairs(Rows x, const int32_t* positions_T, const float* table, int64_t T, int64_t H, int64_t D,
               int64_t half, float sign) {
  const int64_t each = half / 8;  // threads of a head
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= T * H * each) return;
  const int64_t t = i / (H * each), h = i / each % H, first = i % each * 8;
  const float* cos = table + positions_T[t] * 2 * half + first;
  const float* sin = cos + half;
  bf16* low = x.data + t * x.stride + h * D + first;
  Vec8 a = load8(low), b = load8(low + half);
  UNROLL for (int part = 0; part < 2; ++part) {
    const Vec4f c = load4(cos + part * 4), s = load4(sin + part * 4);
    UNROLL for (int j = 0; j < 4; ++j) {
      const float av = to_float(a.v[part * 4 + j]), bv = to_float(b.v[part * 4 + j]), turn = s.v[j] * sign;
      a.v[part * 4 + j] = to_bf16(av * c.v[j] - bv * turn);
      b.v[part * 4 + j] = to_bf16(bv * c.v[j] + av * turn);
    }
  }
  store8(low, a);
  store8(low + half, b);
}

void rope(DeviceStream stream, Rows x, const int32_t* positions_T, const float* table, int64_t T, int64_t H,
          int64_t D, int64_t half, float sign) {
  DEVICE_CHECK(x.stride % 8 == 0 && D % 8 == 0 && half > 0 && half % 8 == 0 && 2 * half <= D);
  if (T * H == 0) return;
  LAUNCH(rope_pairs, static_cast<unsigned>(ceil_div(T * H * (half / 8), kThreads)), kThreads, 0, stream)
  (x, positions_T, table, T, H, D, half, sign);
}

}  // namespace

void add_rope(DeviceTable& table) {
  table.rope = rope;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
