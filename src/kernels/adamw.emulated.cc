// adamw.cu for the emulated device.
#include "kernels/adamw.cu"  // NOLINT: compiled twice, by nvcc for GPUs
