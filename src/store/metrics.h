// Points of one metric, packed for one row of metric_chunk (docs/formats/store.md).
//
//   byte 0     version, 1
//   then       24 bytes a point: step i64, time_ms i64, value f64, little-endian
//   last 4     CRC32C of all before
// Errors: kCorrupt when the checksum, version or length is wrong.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "store/run.h"

namespace flywheel::store {

constexpr size_t kPointsPerChunk = 1024;

std::string pack_points(const MetricPoint* points, size_t count);
// Appends to `out`.
Result<void> unpack_points(std::string_view chunk, std::vector<MetricPoint>& out);

// By ascending step, each step once: the last one in `points` is kept.
void keep_last_of_each_step(std::vector<MetricPoint>& points);

}  // namespace flywheel::store
