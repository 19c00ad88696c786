#include "store/metrics.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/hash.h"

namespace flywheel::store {
namespace {

constexpr char kVersion = 1;
constexpr size_t kPointBytes = 24;
static_assert(sizeof(MetricPoint) == kPointBytes, "a point is packed as it lies in memory");
static_assert(std::endian::native == std::endian::little, "the format is little-endian");

}  // namespace

std::string pack_points(const MetricPoint* points, size_t count) {
  std::string chunk(1 + count * kPointBytes, kVersion);
  if (count > 0) std::memcpy(chunk.data() + 1, points, count * kPointBytes);
  const uint32_t crc = crc32c(chunk);
  chunk.append(reinterpret_cast<const char*>(&crc), sizeof crc);
  return chunk;
}

Result<void> unpack_points(std::string_view chunk, std::vector<MetricPoint>& out) {
  uint32_t crc = 0;
  if (chunk.size() < 1 + sizeof crc || (chunk.size() - 1 - sizeof crc) % kPointBytes != 0) {
    return make_error(ErrorCode::kCorrupt, "a chunk of {} bytes does not hold whole points", chunk.size());
  }
  const std::string_view body = chunk.substr(0, chunk.size() - sizeof crc);
  std::memcpy(&crc, chunk.data() + body.size(), sizeof crc);
  if (crc != crc32c(body)) return make_error(ErrorCode::kCorrupt, "a chunk's checksum is wrong");
  if (body[0] != kVersion) {
    return make_error(ErrorCode::kCorrupt, "a chunk has version {} and this Flywheel reads {}", int{body[0]},
                      int{kVersion});
  }
  const size_t count = (body.size() - 1) / kPointBytes, before = out.size();
  out.resize(before + count);
  if (count > 0) std::memcpy(out.data() + before, body.data() + 1, count * kPointBytes);
  return {};
}

void keep_last_of_each_step(std::vector<MetricPoint>& points) {
  std::ranges::stable_sort(points, {}, &MetricPoint::step);
  size_t kept = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    if (i + 1 < points.size() && points[i + 1].step == points[i].step) continue;
    points[kept++] = points[i];
  }
  points.resize(kept);
}

}  // namespace flywheel::store
