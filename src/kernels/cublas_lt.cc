#include "kernels/cublas_lt_internal.h"

#ifdef FLYWHEEL_HAS_CUDA
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "base/result.h"
#include "base/text.h"
#include "kernels/cublas_lt_abi_internal.h"
#include "kernels/device_cuda_internal.h"

namespace flywheel::kernels {
namespace {

using namespace cublas_lt;

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr const char* kLibrary = "libcublasLt.so.13";

// Where the loader looks, and then the folders that the build knew of (FLYWHEEL_CUBLASLT_FOLDERS, with
// colons): CUDA's toolkit and torch's wheels.
Result<void*> load_library() {
  std::vector<std::string> places = {kLibrary};
  for (const std::string& folder : split(FLYWHEEL_CUBLASLT_FOLDERS, ':'))
    places.push_back(folder + "/" + kLibrary);
  std::string failures;
  for (const std::string& path : places) {
    if (void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    failures += fmt::format("; {}", ::dlerror());
  }
  return make_error(
      ErrorCode::kUnavailable,
      "{} does not load; `.venv/bin/pip install nvidia-cublas` brings it, or LD_LIBRARY_PATH names its "
      "folder{}",
      kLibrary, failures);
}

Result<Functions> find_functions() {
  ASSIGN_OR_RETURN(void* const library, load_library());
  Functions found{};
  std::string missing;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    if (function == nullptr) missing += fmt::format(" {}", name);
  };
  find(found.create, "cublasLtCreate");
  find(found.destroy, "cublasLtDestroy");
  find(found.desc_create, "cublasLtMatmulDescCreate");
  find(found.desc_destroy, "cublasLtMatmulDescDestroy");
  find(found.desc_set, "cublasLtMatmulDescSetAttribute");
  find(found.layout_create, "cublasLtMatrixLayoutCreate");
  find(found.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(found.preference_create, "cublasLtMatmulPreferenceCreate");
  find(found.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(found.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(found.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(found.matmul, "cublasLtMatmul");
  if (!missing.empty()) return make_error(ErrorCode::kUnavailable, "{} lacks{}", kLibrary, missing);
  return found;
}

// The largest power of two up to 256 that divides all of the addresses.
uint32_t alignment_of(const MatrixProduct& p) {
  const auto bits = reinterpret_cast<uintptr_t>(p.out) | reinterpret_cast<uintptr_t>(p.left) |
                    reinterpret_cast<uintptr_t>(p.right) | 256;
  return static_cast<uint32_t>(bits & -bits);
}

}  // namespace

class CublasLt {
 public:
  CublasLt(int index, const Functions& functions) : index_(index), call_(functions) {}
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  const char* open();
  // Null: started; else words for what went wrong.
  const char* multiply(void* stream, const MatrixProduct& p);

 private:
  // A shape's descriptors and algorithm.
  struct Plan {
    void *desc = nullptr, *a = nullptr, *b = nullptr, *d = nullptr;
    Heuristic choice{};
  };
  // Form, sizes, whether it adds, whether there is a bias, alignment.
  using Key = std::tuple<int, int64_t, int64_t, int64_t, bool, bool, uint32_t>;

  const char* make_plan(Plan& plan, const MatrixProduct& p);
  void free_plan(const Plan& plan);

  int index_;
  Functions call_;
  void *handle_ = nullptr, *workspace_ = nullptr;
  std::map<Key, Plan> plans_;
};

CublasLt::~CublasLt() {
  for (const auto& [key, plan] : plans_) free_plan(plan);
  if (handle_ != nullptr) call_.destroy(handle_);
  if (workspace_ != nullptr) cuda_free(index_, workspace_, false);
}

const char* CublasLt::open() {
  cuda_use(index_);
  if (call_.create(&handle_) != 0) return "cuBLASLt does not start on it; its version may not know this GPU";
  return cuda_allocate(index_, &workspace_, kWorkspaceBytes, false);
}

void CublasLt::free_plan(const Plan& plan) {
  for (void* layout : {plan.a, plan.b, plan.d}) {
    if (layout != nullptr) call_.layout_destroy(layout);
  }
  if (plan.desc != nullptr) call_.desc_destroy(plan.desc);
}

// cuBLASLt counts columns first, so rows of ours are its columns, and what it computes is the transpose: d =
// op(a) * op(b) with `left` as a.
const char* CublasLt::make_plan(Plan& plan, const MatrixProduct& p) {
  const auto M = static_cast<uint64_t>(p.M), N = static_cast<uint64_t>(p.N), K = static_cast<uint64_t>(p.K);
  const bool forward = p.form == MatrixProduct::kForward,
             of_weight = p.form == MatrixProduct::kWeightGradient;
  const int32_t a_op = forward ? kTransposed : kNotTransposed,
                b_op = of_weight ? kTransposed : kNotTransposed;
  const auto layout = [&](void** made, DataType type, uint64_t width, uint64_t rows) {
    return call_.layout_create(made, type, width, rows, static_cast<int64_t>(width));
  };
  const auto set = [&](DescAttribute attribute, const auto& value) {
    return call_.desc_set(plan.desc, attribute, static_cast<const void*>(&value),
                          sizeof(std::remove_cvref_t<decltype(value)>));
  };
  int failed = call_.desc_create(&plan.desc, kComputeF32, kF32);
  if (failed == 0) failed = set(kTransposeA, a_op) | set(kTransposeB, b_op);
  if (failed == 0) failed = set(kEpilogue, p.bias_N != nullptr ? kEpilogueBias : kEpilogueNone);
  if (failed == 0 && p.bias_N != nullptr) failed = set(kBiasPointer, p.bias_N);
  if (failed == 0) failed = layout(&plan.a, kBF16, K, of_weight ? M : N);
  if (failed == 0) failed = layout(&plan.b, kBF16, forward ? K : N, M);
  if (failed == 0) failed = layout(&plan.d, of_weight ? kF32 : kBF16, forward ? N : K, of_weight ? N : M);
  if (failed != 0) return "cuBLASLt refuses the shape";

  void* preference = nullptr;
  if (call_.preference_create(&preference) != 0) return "cuBLASLt has no memory for a preference";
  const auto prefer = [&](PreferenceAttribute attribute, const auto& value) {
    return call_.preference_set(preference, attribute, static_cast<const void*>(&value),
                                sizeof(std::remove_cvref_t<decltype(value)>));
  };
  const uint32_t alignment = alignment_of(p);
  failed = prefer(kMaxWorkspaceBytes, static_cast<uint64_t>(kWorkspaceBytes));
  failed |= prefer(kReductionSchemes, kReduceInComputeType);
  for (const PreferenceAttribute of : {kMinAlignmentA, kMinAlignmentB, kMinAlignmentC, kMinAlignmentD})
    failed |= prefer(of, alignment);
  int found = 0;
  if (failed == 0) {
    failed = call_.heuristic(handle_, plan.desc, plan.a, plan.b, plan.d, plan.d, preference, 1, &plan.choice,
                             &found);
  }
  call_.preference_destroy(preference);
  if (failed != 0 || found == 0 || plan.choice.status != 0)
    return "cuBLASLt knows no algorithm for the shape";
  return nullptr;
}

const char* CublasLt::multiply(void* stream, const MatrixProduct& p) {
  if (p.M == 0 || p.N == 0 || p.K == 0) return nullptr;
  const bool has_bias = p.bias_N != nullptr;
  const Key key{p.form, p.M, p.N, p.K, p.adds, has_bias, alignment_of(p)};
  auto known = plans_.find(key);
  if (known == plans_.end()) {
    Plan plan;
    if (const char* error = make_plan(plan, p)) {
      free_plan(plan);
      return error;
    }
    known = plans_.emplace(key, plan).first;
  }
  const Plan& plan = known->second;
  if (has_bias &&
      call_.desc_set(plan.desc, kBiasPointer, static_cast<const void*>(&p.bias_N), sizeof(const bf16*)) != 0)
    return "cuBLASLt refuses the bias";
  const float one = 1, keep = p.adds ? 1 : 0;
  const int status =
      call_.matmul(handle_, plan.desc, &one, p.left, plan.a, p.right, plan.b, &keep, p.out, plan.d, p.out,
                   plan.d, &plan.choice.algorithm, workspace_, kWorkspaceBytes, stream);
  return status == 0 ? nullptr : "cuBLASLt could not start it";
}

void cublas_multiply(DeviceStream stream, const MatrixProduct& product) {
  const char* error = stream.cublas->multiply(stream.handle, product);
  if (error != nullptr && stream.failure->kernel == nullptr) {
    constexpr const char* kNames[] = {"linear", "linear_dx", "linear_dw"};
    *stream.failure = {kNames[product.form], 0, error};
  }
}

const char* cublas_open(int index, CublasLt** made) {
  static const Result<Functions> functions = find_functions();  // once: it is a large library
  if (!functions.ok()) return functions.error().message.c_str();
  auto cublas = std::make_unique<CublasLt>(index, functions.value());
  if (const char* error = cublas->open()) return error;
  *made = cublas.release();
  return nullptr;
}

void cublas_close(CublasLt* cublas) {
  delete cublas;
}

}  // namespace flywheel::kernels
#endif
