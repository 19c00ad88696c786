// Bytes that lie in several places and are read as one, so that what is large is not copied to be joined.
//
//   Rope rope;
//   rope.append(encode(header));           // its own
//   rope.append(as_bytes(weights), copy);  // a view of what `copy` owns and nobody changes
//   file.write(rope.parts()[0].bytes);
//
// Copies share the bytes. Threads: a rope that nobody appends to may be read from any.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace flywheel::runtime {

class Rope {
 public:
  struct Part {
    std::string_view bytes;
    std::shared_ptr<const void> owner;
  };

  Rope() = default;
  Rope(std::string bytes) { append(std::move(bytes)); }  // a string is a rope of one part

  void append(std::string bytes);
  void append(std::string_view bytes, std::shared_ptr<const void> owner);
  void append(const Rope& other);

  const std::vector<Part>& parts() const { return parts_; }
  size_t size() const { return size_; }
  // Bytes [offset, offset + count), fewer at the end.
  std::string substr(size_t offset, size_t count = std::string::npos) const;
  // Of the bytes and of where the parts begin: equal for ropes that were put together alike.
  uint64_t digest() const;

 private:
  std::vector<Part> parts_;
  size_t size_ = 0;
};

}  // namespace flywheel::runtime
