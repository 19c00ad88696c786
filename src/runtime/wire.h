// Structs as bytes: the one encoding of messages and log records.
//
// A struct lists its fields once, `template <typename V> void fields(V& v) { v(a); v(b); }`, and is written
// and read from that list. Integers are LEB128 (signed ones zigzag), doubles 8 bytes, strings and lists a
// length and their elements; everything little-endian. There are no field numbers: a reader must know the
// version, which the log's header and the greeting of a worker carry.
//
// Errors: reading past the end, or a length that the bytes cannot hold, makes the Decoder fail for good
// (ok() is false); what was read then is unspecified but valid memory.
//
//   std::string bytes = encode(command);
//   Result<Command> back = decode<Command>(bytes);
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/result.h"

namespace flywheel::runtime {

class Encoder {
 public:
  explicit Encoder(std::string& out) : out_(out) {}
  template <typename T>
  void operator()(const T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      out_.push_back(value ? 1 : 0);
    } else if constexpr (std::is_enum_v<T>) {
      varint(static_cast<uint64_t>(value));
    } else if constexpr (std::unsigned_integral<T>) {
      varint(value);
    } else if constexpr (std::signed_integral<T>) {
      const auto wide = static_cast<int64_t>(value);
      varint((static_cast<uint64_t>(wide) << 1) ^ static_cast<uint64_t>(wide >> 63));
    } else if constexpr (std::is_same_v<T, double>) {
      const auto bits = std::bit_cast<uint64_t>(value);
      char raw[8];
      std::memcpy(raw, &bits, 8);
      out_.append(raw, 8);
    } else if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, std::string_view>) {
      varint(value.size());
      out_.append(value);
    } else if constexpr (requires { typename T::value_type; }) {
      varint(value.size());
      for (const auto& element : value) (*this)(element);
    } else {
      const_cast<T&>(value).fields(*this);  // fields() is shared with reading; nothing is changed here
    }
  }

 private:
  void varint(uint64_t value) {
    char raw[10];
    size_t n = 0;
    for (; value >= 0x80; value >>= 7) raw[n++] = static_cast<char>(value | 0x80);
    raw[n++] = static_cast<char>(value);
    out_.append(raw, n);
  }
  std::string& out_;
};

class Decoder {
 public:
  explicit Decoder(std::string_view bytes) : left_(bytes) {}
  bool ok() const { return ok_; }
  bool done() const { return left_.empty() || !ok_; }
  std::string_view rest() const { return left_; }

  template <typename T>
  void operator()(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      value = varint() != 0;
    } else if constexpr (std::is_enum_v<T>) {
      value = static_cast<T>(varint());
    } else if constexpr (std::unsigned_integral<T>) {
      value = static_cast<T>(varint());
    } else if constexpr (std::signed_integral<T>) {
      const uint64_t raw = varint();
      value = static_cast<T>(static_cast<int64_t>(raw >> 1) ^ -static_cast<int64_t>(raw & 1));
    } else if constexpr (std::is_same_v<T, double>) {
      uint64_t bits = 0;
      const std::string_view raw = take(8);
      if (ok_) std::memcpy(&bits, raw.data(), 8);
      value = std::bit_cast<double>(bits);
    } else if constexpr (std::is_same_v<T, std::string>) {
      value.assign(take(varint()));
    } else if constexpr (std::is_same_v<T, std::string_view>) {
      value = take(varint());  // a view into the message: valid as long as its bytes
    } else if constexpr (requires { typename T::value_type; }) {
      const uint64_t count = varint();
      if (count > left_.size()) ok_ = false;  // every element takes at least a byte
      value.clear();
      if (ok_) value.reserve(count);
      for (uint64_t i = 0; i < count && ok_; ++i) (*this)(value.emplace_back());
    } else {
      value.fields(*this);
    }
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (left_.empty()) break;
      const auto byte = static_cast<uint8_t>(left_.front());
      left_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    ok_ = false;
    return 0;
  }
  std::string_view take(uint64_t size) {
    if (!ok_ || size > left_.size()) {
      ok_ = false;
      return {};
    }
    const std::string_view piece = left_.substr(0, size);
    left_.remove_prefix(size);
    return piece;
  }
  std::string_view left_;
  bool ok_ = true;
};

template <typename T>
void encode_to(std::string& out, const T& value) {
  Encoder encoder(out);
  encoder(value);
}
template <typename T>
std::string encode(const T& value) {
  std::string out;
  encode_to(out, value);
  return out;
}
// kCorrupt when the bytes are too short, too long or not such a struct.
template <typename T>
Result<T> decode(std::string_view bytes) {
  T value{};
  Decoder decoder(bytes);
  decoder(value);
  if (!decoder.ok() || !decoder.rest().empty()) {
    return make_error(ErrorCode::kCorrupt, "a message of {} bytes is not what its type says", bytes.size());
  }
  return value;
}

}  // namespace flywheel::runtime
