// cross_entropy.cu for the emulated device.
#include "kernels/cross_entropy.cu"  // NOLINT: compiled twice, by nvcc for GPUs
