// Products of matrices by NVIDIA's cuBLASLt, which is loaded when a GPU is opened: the program is built and
// runs without it. nvcc reads this header too, so base stays out of it.
//
// Deterministic: the algorithm of a shape is asked for once a device and kept, and none is taken that adds up
// parts of a sum in place; parts are summed in f32 in the workspace. Threads: one at a time for each
// CublasLt. Errors of a product go to the stream's LaunchFailure.
#pragma once

#include "kernels/device_table.h"

namespace flywheel::kernels {

class CublasLt;

// Of y_MN = x_MK * w_NK^T. Row after row, no gaps; N and K multiples of 8.
struct MatrixProduct {
  enum Form {
    kForward,         // y_MN = x_MK * w_NK^T (+ bias_N); out, left, right: y, w, x
    kInputGradient,   // dx_MK = dy_MN * w_NK; dx, w, dy
    kWeightGradient,  // dw_NK = dy_MN^T * x_MK; dw (f32), x, dy
  };
  Form form;
  void* out;
  const bf16 *left, *right;
  const bf16* bias_N;  // null: none
  int64_t M, N, K;
  bool adds;  // to what is in `out`
};

// Starts it on the stream.
void cublas_multiply(DeviceStream stream, const MatrixProduct& product);

// Loads the library and takes working memory on GPU `index`. Null: `*made` is there; else what is wrong, in
// words that end with what to do, valid until the thread's next call.
const char* cublas_open(int index, CublasLt** made);
void cublas_close(CublasLt* cublas);

}  // namespace flywheel::kernels
