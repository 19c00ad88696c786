// norm.cu for the emulated device.
#include "kernels/norm.cu"  // NOLINT: compiled twice, by nvcc for GPUs
