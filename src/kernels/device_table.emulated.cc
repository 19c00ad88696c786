// device_table.cu for the emulated device.
#include "kernels/device_table.cu"  // NOLINT: compiled twice, by nvcc for GPUs
