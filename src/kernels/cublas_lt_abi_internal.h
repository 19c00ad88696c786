// What cublas_lt.cc uses of cuBLASLt's binary interface (the same in versions 12 and 13), declared here
// because the library's headers come with a package of their own that most machines lack. Where they are
// installed the build compares.
#pragma once

#include <cstddef>
#include <cstdint>

#if __has_include(<cublasLt.h>) && __has_include(<library_types.h>)
#include <cublasLt.h>
#define FLYWHEEL_HAS_CUBLASLT_HEADER 1
#endif

namespace flywheel::kernels::cublas_lt {

enum DataType : int { kF32 = 0, kBF16 = 14 };
enum ComputeType : int { kComputeF32 = 68 };
enum DescAttribute : int { kTransposeA = 3, kTransposeB = 4, kEpilogue = 7, kBiasPointer = 8 };
enum PreferenceAttribute : int {
  kMaxWorkspaceBytes = 1,
  kReductionSchemes = 3,
  kMinAlignmentA = 5,
  kMinAlignmentB = 6,
  kMinAlignmentC = 7,
  kMinAlignmentD = 8,
};
inline constexpr int32_t kNotTransposed = 0, kTransposed = 1;
inline constexpr uint32_t kEpilogueNone = 1, kEpilogueBias = 4;
inline constexpr uint32_t kReduceInComputeType =
    2;  // a bit of kReductionSchemes; sums that are not split are always allowed

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

// Handles are opaque. Each returns 0 for success.
struct Functions {
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*desc_create)(void** desc, ComputeType compute, DataType scale);
  int (*desc_destroy)(void* desc);
  int (*desc_set)(void* desc, DescAttribute attribute, const void* value, size_t bytes);
  int (*layout_create)(void** layout, DataType type, uint64_t rows, uint64_t columns, int64_t leading);
  int (*layout_destroy)(void* layout);
  int (*preference_create)(void** preference);
  int (*preference_destroy)(void* preference);
  int (*preference_set)(void* preference, PreferenceAttribute attribute, const void* value, size_t bytes);
  int (*heuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted,
                   Heuristic* results, int* found);
  int (*matmul)(void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b,
                void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream);
};

#ifdef FLYWHEEL_HAS_CUBLASLT_HEADER
static_assert(kF32 == static_cast<int>(CUDA_R_32F) && kBF16 == static_cast<int>(CUDA_R_16BF));
static_assert(kComputeF32 == static_cast<int>(CUBLAS_COMPUTE_32F));
static_assert(kTransposeA == static_cast<int>(CUBLASLT_MATMUL_DESC_TRANSA) &&
              kTransposeB == static_cast<int>(CUBLASLT_MATMUL_DESC_TRANSB) &&
              kEpilogue == static_cast<int>(CUBLASLT_MATMUL_DESC_EPILOGUE) &&
              kBiasPointer == static_cast<int>(CUBLASLT_MATMUL_DESC_BIAS_POINTER));
static_assert(kMaxWorkspaceBytes == static_cast<int>(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) &&
              kReductionSchemes == static_cast<int>(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) &&
              kMinAlignmentA == static_cast<int>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES) &&
              kMinAlignmentB == static_cast<int>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES) &&
              kMinAlignmentC == static_cast<int>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES) &&
              kMinAlignmentD == static_cast<int>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES));
static_assert(kNotTransposed == static_cast<int>(CUBLAS_OP_N) &&
              kTransposed == static_cast<int>(CUBLAS_OP_T));
static_assert(kEpilogueNone == static_cast<int>(CUBLASLT_EPILOGUE_DEFAULT) &&
              kEpilogueBias == static_cast<int>(CUBLASLT_EPILOGUE_BIAS));
static_assert(kReduceInComputeType == static_cast<int>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t) &&
              sizeof(Heuristic) == sizeof(cublasLtMatmulHeuristicResult_t) &&
              offsetof(Heuristic, workspace_bytes) ==
                  offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) &&
              offsetof(Heuristic, status) == offsetof(cublasLtMatmulHeuristicResult_t, state));
#endif

}  // namespace flywheel::kernels::cublas_lt
