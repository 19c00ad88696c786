#include "model/zip_archive.h"

#include <zlib.h>

#include <algorithm>

#include "model/little_endian.h"

namespace flywheel::model {
namespace {

constexpr uint32_t kLocalSignature = 0x04034b50, kCentralSignature = 0x02014b50, kEndSignature = 0x06054b50,
                   kEnd64Signature = 0x06064b50, kLocator64Signature = 0x07064b50;
constexpr size_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56, kLocator64Bytes = 20;
constexpr size_t kMostComment = 65'535;
constexpr uint32_t kIn64 = 0xffffffff;  // the value stands in the zip64 field

uint16_t u16(std::string_view bytes, size_t at) {
  return static_cast<uint16_t>(little_endian(bytes.substr(at, 2)));
}
uint32_t u32(std::string_view bytes, size_t at) {
  return static_cast<uint32_t>(little_endian(bytes.substr(at, 4)));
}
uint64_t u64(std::string_view bytes, size_t at) {
  return little_endian(bytes.substr(at, 8));
}

}  // namespace

class ZipParser {
 public:
  ZipParser(ZipArchive& archive, std::string_view bytes) : archive_(archive), bytes_(bytes) {}

  Result<void> parse() {
    RETURN_IF_ERROR(find_directory());
    for (uint64_t i = 0; i < entries_; ++i) RETURN_IF_ERROR(read_entry());
    return check_layout();
  }

 private:
  template <typename... Args>
  Error corrupt(fmt::format_string<Args...> format, Args&&... args) const {
    return make_error(ErrorCode::kCorrupt, "{}: {}", archive_.name_,
                      fmt::format(format, std::forward<Args>(args)...));
  }

  // The end record is the last thing in the file, behind it only its comment.
  Result<void> find_directory() {
    for (size_t back = kEndBytes; back <= std::min(bytes_.size(), kEndBytes + kMostComment); ++back) {
      const size_t at = bytes_.size() - back;
      if (u32(bytes_, at) == kEndSignature && u16(bytes_, at + 20) == back - kEndBytes) return read_end(at);
    }
    return corrupt("no zip's end in its {} bytes: it was cut short, or is no zip; fetch it again",
                   bytes_.size());
  }

  Result<void> read_end(size_t at) {
    entries_ = u16(bytes_, at + 10);
    uint64_t size = u32(bytes_, at + 12);
    at_ = u32(bytes_, at + 16);
    end_ = at;
    if (at >= kLocator64Bytes && u32(bytes_, at - kLocator64Bytes) == kLocator64Signature) {
      const uint64_t end64 = u64(bytes_, at - kLocator64Bytes + 8);
      if (end64 > at || at - end64 < kEnd64Bytes + kLocator64Bytes || u32(bytes_, end64) != kEnd64Signature) {
        return corrupt("its zip64 end record is not at byte {}", end64);
      }
      entries_ = u64(bytes_, end64 + 32);
      size = u64(bytes_, end64 + 40);
      at_ = u64(bytes_, end64 + 48);
      end_ = end64;
    }
    if (at_ > end_ || size != end_ - at_ || entries_ > size / kCentralBytes) {
      return corrupt("its directory (byte {}, {} bytes, {} entries) does not end where the end record is, {}",
                     at_, size, entries_, end_);
    }
    directory_ = at_;
    return {};
  }

  Result<void> read_entry() {
    if (end_ - at_ < kCentralBytes || u32(bytes_, at_) != kCentralSignature)
      return corrupt("no directory entry at byte {}", at_);
    const uint16_t flags = u16(bytes_, at_ + 8), method = u16(bytes_, at_ + 10);
    const size_t name_bytes = u16(bytes_, at_ + 28), extra_bytes = u16(bytes_, at_ + 30),
                 comment_bytes = u16(bytes_, at_ + 32);
    if (end_ - at_ - kCentralBytes < name_bytes + extra_bytes + comment_bytes)
      return corrupt("the directory entry at byte {} ends behind the directory", at_);
    ZipEntry entry{.name = bytes_.substr(at_ + kCentralBytes, name_bytes), .crc32 = u32(bytes_, at_ + 16)};
    Sizes sizes{
        .compressed = u32(bytes_, at_ + 20), .size = u32(bytes_, at_ + 24), .offset = u32(bytes_, at_ + 42)};
    RETURN_IF_ERROR(read_extra(bytes_.substr(at_ + kCentralBytes + name_bytes, extra_bytes), sizes));
    if (method != 0 || (flags & 1) != 0) {
      return make_error(ErrorCode::kInvalid,
                        "{}: {} is {}: torch.save writes entries as they are, so this is another zip or was "
                        "packed anew; unpack it, or save it with torch.save",
                        archive_.name_, entry.name, method != 0 ? "compressed" : "encrypted");
    }
    if (sizes.compressed != sizes.size)
      return corrupt("{} is stored in {} bytes but has {}", entry.name, sizes.compressed, sizes.size);
    entry.header_offset = sizes.offset;
    RETURN_IF_ERROR(find_bytes(entry, sizes));
    at_ += kCentralBytes + name_bytes + extra_bytes + comment_bytes;
    archive_.entries_.push_back(entry);
    return {};
  }

  struct Sizes {
    uint64_t compressed, size, offset;
  };
  // The zip64 field (tag 1) has, in this order, those of the three that did not fit 32 bits.
  Result<void> read_extra(std::string_view extra, Sizes& sizes) const {
    while (extra.size() >= 4) {
      const uint16_t tag = u16(extra, 0);
      const size_t count = u16(extra, 2);
      if (count > extra.size() - 4) break;  // padding that is no field
      std::string_view field = extra.substr(4, count);
      extra.remove_prefix(4 + count);
      if (tag != 1) continue;
      for (uint64_t* value : {&sizes.size, &sizes.compressed, &sizes.offset}) {
        if (*value != kIn64) continue;
        if (field.size() < 8) return corrupt("the zip64 field of the entry at byte {} is too short", at_);
        *value = u64(field, 0);
        field.remove_prefix(8);
      }
      return {};
    }
    return {};
  }

  Result<void> find_bytes(ZipEntry& entry, const Sizes& sizes) const {
    if (sizes.offset > directory_ || directory_ - sizes.offset < kLocalBytes ||
        u32(bytes_, sizes.offset) != kLocalSignature) {
      return corrupt("{} should begin at byte {}, where no entry does", entry.name, sizes.offset);
    }
    const size_t name_bytes = u16(bytes_, sizes.offset + 26);
    const uint64_t begin = sizes.offset + kLocalBytes + name_bytes + u16(bytes_, sizes.offset + 28);
    if (begin > directory_ || sizes.size > directory_ - begin) {
      return corrupt("{} ends at byte {}, but the entries end at {}", entry.name, begin + sizes.size,
                     directory_);
    }
    if (bytes_.substr(sizes.offset + kLocalBytes, name_bytes) != entry.name)
      return corrupt("the entry at byte {} is not {}, as the directory says", sizes.offset, entry.name);
    entry.bytes = bytes_.substr(begin, sizes.size);
    return {};
  }

  // Two names for the same bytes, or the same name for two: readers would differ in what the file says.
  Result<void> check_layout() {
    std::vector<ZipEntry>& entries = archive_.entries_;
    std::ranges::sort(entries, {}, &ZipEntry::header_offset);
    for (size_t i = 1; i < entries.size(); ++i) {
      const auto end =
          static_cast<uint64_t>(entries[i - 1].bytes.data() - bytes_.data()) + entries[i - 1].bytes.size();
      if (entries[i].header_offset < end)
        return corrupt("{} and {} overlap", entries[i - 1].name, entries[i].name);
    }
    std::ranges::sort(entries, {}, &ZipEntry::name);
    const auto twice = std::ranges::adjacent_find(entries, {}, &ZipEntry::name);
    return twice == entries.end() ? Result<void>() : corrupt("{} is in it twice", twice->name);
  }

  ZipArchive& archive_;
  std::string_view bytes_;
  uint64_t entries_ = 0, at_ = 0, directory_ = 0, end_ = 0;
};

Result<ZipArchive> ZipArchive::parse(std::string_view bytes, const std::string& name) {
  ZipArchive archive;
  archive.name_ = name;
  RETURN_IF_ERROR(ZipParser(archive, bytes).parse());
  return archive;
}

const ZipEntry* ZipArchive::find(std::string_view name) const {
  const auto it = std::ranges::lower_bound(entries_, name, {}, &ZipEntry::name);
  return it != entries_.end() && it->name == name ? &*it : nullptr;
}

Result<void> ZipArchive::verify() const {
  for (const ZipEntry& entry : entries_) {
    if (entry.crc32 == 0) continue;
    const uLong found = crc32_z(0, reinterpret_cast<const Bytef*>(entry.bytes.data()), entry.bytes.size());
    if (found != entry.crc32) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: {} has CRC-32 {:08x}, but {:08x} was written: it is damaged", name_, entry.name,
                        found, entry.crc32);
    }
  }
  return {};
}

bool ZipArchive::has_checksums() const {
  return std::ranges::any_of(entries_, [](const ZipEntry& entry) { return entry.crc32 != 0; });
}

}  // namespace flywheel::model
