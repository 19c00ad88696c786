// embedding.cu for the emulated device.
#include "kernels/embedding.cu"  // NOLINT: compiled twice, by nvcc for GPUs
