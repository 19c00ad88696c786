// A zip archive whose entries lie in it as they are (stored, not compressed), as torch.save writes them: each
// entry is a view into the map. Read by PKWARE's APPNOTE.TXT, with zip64; not written.
//
// Ownership: spans point into the bytes that were parsed, which the caller keeps alive.
// Threads: immutable after parse(), so any.
// Errors: kInvalid (no zip, a compressed or encrypted entry), kCorrupt (entries that overlap, lie outside or
// have one name), with file and byte.
//
//   ASSIGN_OR_RETURN(const ZipArchive zip, ZipArchive::parse(map.bytes(), "model.pt"));
//   const ZipEntry* pickle = zip.find("archive/data.pkl");
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace flywheel::model {

struct ZipEntry {
  std::string_view name;
  std::string_view bytes = {};
  uint32_t crc32 = 0;
  uint64_t header_offset = 0;  // of its local header in the file
};

class ZipArchive {
 public:
  // True where the bytes begin as a zip does.
  static bool looks_like_one(std::string_view bytes) { return bytes.starts_with("PK\x03\x04"); }
  static Result<ZipArchive> parse(std::string_view bytes, const std::string& name);

  const std::vector<ZipEntry>& entries() const { return entries_; }  // by name
  const ZipEntry* find(std::string_view name) const;
  // Reads everything and compares each entry with its CRC-32. One of 0 is none: torch leaves it away where it
  // was told to (torch.serialization.set_crc32_options).
  Result<void> verify() const;
  bool has_checksums() const;

 private:
  friend class ZipParser;
  std::string name_;
  std::vector<ZipEntry> entries_;
};

}  // namespace flywheel::model
