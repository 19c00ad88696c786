#include "runtime/rope.h"

#include <algorithm>

#include "base/hash.h"

namespace flywheel::runtime {

void Rope::append(std::string bytes) {
  if (bytes.empty()) return;
  auto owner = std::make_shared<const std::string>(std::move(bytes));
  const std::string_view view = *owner;
  append(view, std::move(owner));
}

void Rope::append(std::string_view bytes, std::shared_ptr<const void> owner) {
  if (bytes.empty()) return;
  size_ += bytes.size();
  parts_.push_back({bytes, std::move(owner)});
}

void Rope::append(const Rope& other) {
  for (const Part& part : other.parts_) append(part.bytes, part.owner);
}

std::string Rope::substr(size_t offset, size_t count) const {
  offset = std::min(offset, size_);
  count = std::min(count, size_ - offset);
  std::string joined;
  joined.reserve(count);
  for (const Part& part : parts_) {
    if (offset >= part.bytes.size()) {
      offset -= part.bytes.size();
      continue;
    }
    joined += part.bytes.substr(offset, count - joined.size());
    offset = 0;
    if (joined.size() == count) break;
  }
  return joined;
}

uint64_t Rope::digest() const {
  uint64_t digest = 0;
  for (const Part& part : parts_) digest = xxh64(part.bytes, digest);
  return digest;
}

}  // namespace flywheel::runtime
