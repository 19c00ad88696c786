// elementwise.cu for the emulated device.
#include "kernels/elementwise.cu"  // NOLINT: compiled twice, by nvcc for GPUs
