// swiglu.cu for the emulated device.
#include "kernels/swiglu.cu"  // NOLINT: compiled twice, by nvcc for GPUs
