// attention_backward.cu for the emulated device.
#include "kernels/attention_backward.cu"  // NOLINT: compiled twice, by nvcc for GPUs
