// attention.cu for the emulated device.
#include "kernels/attention.cu"  // NOLINT: compiled twice, by nvcc for GPUs
