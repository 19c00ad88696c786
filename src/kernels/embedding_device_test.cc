// embedding.cu beside the CPU's kernel: rows are copied, and gradients added in the same order, so the bits
// are the same.
#include "kernels/device_test_internal.h"
#include "kernels/embedding.h"

namespace flywheel::kernels {
namespace {

TEST(TokenOrder, RunsOfOneIdInTheirOrder) {
  const std::vector<int32_t> ids = {5, kForeignToken, 2, 5, 2, 2, kForeignToken, 0};
  std::vector<int32_t> order(ids.size()), run_end(ids.size());
  token_order(order.data(), run_end.data(), ids.data(), std::ssize(ids));
  EXPECT_EQ(order, (std::vector<int32_t>{1, 6, 7, 2, 4, 5, 0, 3}));
  EXPECT_EQ(run_end, (std::vector<int32_t>{0, 1, 3, 6, 4, 5, 8, 7}));
}

TEST(EmbeddingDevice, RowsAndTheirGradient) {
  RandomInput random;
  ThreadPool pool(1);
  struct Shape {
    int64_t T, V, D;
  };
  FOR_EACH_DEVICE(device) {
    for (const auto [T, V, D] : {Shape{1, 1, 8}, {40, 3, 64}, {70, 50, 264}, {9, 4, 520}}) {
      const auto table = bf16_normal(random, V * D), dy = bf16_normal(random, T * D),
                 before = random.normal(V * D);
      std::vector<int32_t> ids, order(static_cast<size_t>(T)), run_end(static_cast<size_t>(T));
      for (int64_t t = 0; t < T; ++t) {
        ids.push_back(t % 7 == 3 ? kForeignToken : static_cast<int32_t>(random.integer(0, V - 1)));
      }
      std::vector<float> want(dy.size()), gradient = before;
      embedding(want.data(), ids.data(), DType::kF32, table.data(), T, V, D, pool);
      embedding_backward(gradient.data(), ids.data(), dy.data(), T, D, pool);
      token_order(order.data(), run_end.data(), ids.data(), T);

      DeviceBuffer on_ids = on_device(device, ids), on_table = on_device(device, bf16_of(table));
      DeviceBuffer on_order = on_device(device, order), on_run_end = on_device(device, run_end);
      DeviceBuffer on_dy = on_device(device, bf16_of(dy)), on_gradient = on_device(device, before);
      DeviceBuffer y = device.allocate(T * D * 2).value();
      device.kernels().embedding(device.stream(), y.as<bf16>(), on_ids.as<int32_t>(), on_table.as<bf16>(), T,
                                 D);
      device.kernels().embedding_backward(device.stream(), on_gradient.as<float>(), on_ids.as<int32_t>(),
                                          on_order.as<int32_t>(), on_run_end.as<int32_t>(), on_dy.as<bf16>(),
                                          T, D);
      EXPECT_EQ(floats_of(from_device<bf16>(y)), want) << T << ' ' << V << ' ' << D;
      EXPECT_EQ(from_device<float>(on_gradient), gradient) << T << ' ' << V << ' ' << D;
    }
  }
}

}  // namespace
}  // namespace flywheel::kernels
