// For tests: zips and files of torch.save, as small as they can be, sound or wrong in one place.
//
//   ZipWriterForTests zip;
//   zip.add("m/data.pkl", pickle).add("m/byteorder", "little").add("m/data/0", floats);
//   std::string bytes = zip.finish();
#pragma once

#include <zlib.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flywheel::model {

struct ZipWriterForTests {
  bool zip64 = false;   // sizes and offsets in the zip64 fields
  uint16_t method = 0;  // as the directory says
  uint16_t flags = 0;
  size_t shift_offset = 0;  // added to every entry's offset in the directory
  std::string bytes, directory;
  int entries = 0;

  static std::string number(uint64_t value, size_t width) {
    std::string out;
    for (size_t i = 0; i < width; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
    return out;
  }

  ZipWriterForTests& add(const std::string& name, std::string_view content) {
    const uint64_t offset = bytes.size() + shift_offset;
    const auto crc = crc32_z(0, reinterpret_cast<const Bytef*>(content.data()), content.size());
    const std::string after_version = number(flags, 2) + number(method, 2) + number(0, 4) + number(crc, 4);
    bytes += number(0x04034b50, 4) + number(20, 2) + after_version + number(content.size(), 4) +
             number(content.size(), 4) + number(name.size(), 2) + number(5, 2) + name +
             std::string("FB\1\0Z", 5);
    bytes += content;
    const std::string extra = zip64 ? number(1, 2) + number(24, 2) + number(content.size(), 8) +
                                          number(content.size(), 8) + number(offset, 8)
                                    : "";
    const uint64_t size = zip64 ? 0xffffffff : content.size();
    directory += number(0x02014b50, 4) + number(20, 2) + number(20, 2) + after_version + number(size, 4) +
                 number(size, 4) + number(name.size(), 2) + number(extra.size(), 2) + number(0, 2) +
                 number(0, 8) + number(zip64 ? 0xffffffff : offset, 4) + name + extra;
    ++entries;
    return *this;
  }

  std::string finish() const {
    const auto count = static_cast<uint64_t>(entries);
    std::string out = bytes + directory;
    if (zip64) {
      const uint64_t end64 = out.size();
      out += number(0x06064b50, 4) + number(44, 8) + number(45, 2) + number(45, 2) + number(0, 8) +
             number(count, 8) + number(count, 8) + number(directory.size(), 8) + number(bytes.size(), 8);
      out += number(0x07064b50, 4) + number(0, 4) + number(end64, 8) + number(1, 4);
    }
    const uint64_t size = zip64 ? 0xffffffff : directory.size(), at = zip64 ? 0xffffffff : bytes.size();
    return out + number(0x06054b50, 4) + number(0, 4) + number(zip64 ? 0xffff : count, 2) +
           number(zip64 ? 0xffff : count, 2) + number(size, 4) + number(at, 4) + number(0, 2);
  }
};

// Pickles of torch's tensors.
struct TorchPickleForTests {
  static std::string name(const std::string& module, const std::string& function) {
    return "c" + module + "\n" + function + "\n";
  }
  static std::string text(const std::string& value) {
    return "\x8c" + std::string(1, static_cast<char>(value.size())) + value;
  }
  static std::string integer(int64_t value) {
    return "\x8a\x08" + ZipWriterForTests::number(static_cast<uint64_t>(value), 8);
  }
  static std::string tuple(const std::vector<int64_t>& values) {
    std::string out = "(";
    for (const int64_t value : values) out += integer(value);
    return out + "t";
  }
  // A view of storage `key`, which has `held` elements.
  static std::string tensor(const std::string& key, int64_t held, int64_t offset,
                            const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                            const std::string& storage = "FloatStorage") {
    return name("torch._utils", "_rebuild_tensor_v2") + "((" + text("storage") + name("torch", storage) +
           text(key) + text("cpu") + integer(held) + "tQ" + integer(offset) + tuple(shape) + tuple(strides) +
           "\x89" + name("collections", "OrderedDict") + ")RtR";
  }
  // {name: tensor, ...}
  static std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
    std::string out = "\x80\x02}(";
    for (const auto& [key, value] : items) out += text(key) + value;
    return out + "u.";
  }
};

}  // namespace flywheel::model
