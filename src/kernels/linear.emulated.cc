// linear.cu for the emulated device.
#include "kernels/linear.cu"  // NOLINT: compiled twice, by nvcc for GPUs
