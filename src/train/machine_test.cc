#include "train/machine.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/json.h"
#include "train/peak_record.h"

namespace flywheel::train {
namespace {

TEST(Machine, IsFoundInUpperAndLowerCase) {
  EXPECT_EQ(named_machine("H100").value().name, "h100");
  EXPECT_EQ(named_machine("H200").value().memory_gb, named_machine("h200").value().memory_gb);
  const auto unknown = named_machine("H2000");
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, ErrorCode::kNotFound);
  EXPECT_NE(unknown.error().message.find("no machine is called H2000"), std::string::npos);
}

TEST(Machine, IsFoundByWhatTheDriverCallsItsGpu) {
  ASSERT_TRUE(machine_of_gpu("NVIDIA H200").has_value());
  EXPECT_EQ(machine_of_gpu("NVIDIA H200")->name, "h200");
  EXPECT_EQ(machine_of_gpu("NVIDIA H100 80GB HBM3")->name, "h100");
  EXPECT_FALSE(machine_of_gpu("NVIDIA T4").has_value());
  EXPECT_FALSE(machine_of_gpu("").has_value());
}

// What was measured beside other work does not count where more was seen before.
TEST(Machine, CountsWithTheMostThatWasSeen) {
  const TempFolder folder;
  const std::string record = folder / "peaks.json";
  ThreadPool pool(1);
  const MachineSpec first = measure_machine(1, pool, record);
  const Json peaks = parse_json(read_file(record).value()).value()["peaks"];
  ASSERT_EQ(peaks.size(), 3u) << peaks;  // f32, bf16, bytes read
  for (const auto& [key, value] : peaks.items()) record_peak(record, key, 1000 * value.get<double>());
  const MachineSpec second = measure_machine(4, pool, record);
  EXPECT_NEAR(second.f32_tflops * 4 / first.f32_tflops, 1000, 1e-6);
  EXPECT_NEAR(second.bf16_tflops * 4 / first.bf16_tflops, 1000, 1e-6);
  EXPECT_NEAR(second.memory_gb_s * 4 / first.memory_gb_s, 1000, 1e-6);
  EXPECT_NEAR(second.host_gb_s * 4 / first.host_gb_s, 1000, 1e-6);
  // Without a record only what is measured now.
  EXPECT_LT(measure_machine(4, pool).f32_tflops, second.f32_tflops);
}

}  // namespace
}  // namespace flywheel::train
