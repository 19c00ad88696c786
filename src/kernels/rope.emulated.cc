// rope.cu for the emulated device.
#include "kernels/rope.cu"  // NOLINT: compiled twice, by nvcc for GPUs
