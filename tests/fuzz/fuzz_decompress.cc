// gzip and zstd: the content up to a limit, or an error.
#include <zlib.h>
#include <zstd.h>

#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "data/input.h"
#include "fuzzer.h"

namespace {

std::vector<std::string> seeds() {
  const std::string text = "some text, some text, some text";
  std::string zstd(ZSTD_compressBound(text.size()), '\0');
  zstd.resize(ZSTD_compress(zstd.data(), zstd.size(), text.data(), text.size(), 3));
  std::string gzip(200, '\0');
  z_stream stream{};
  CHECK(deflateInit2(&stream, 6, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY) == Z_OK, "deflate");
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(gzip.data());
  stream.avail_out = static_cast<uInt>(gzip.size());
  CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END, "deflate");
  gzip.resize(stream.total_out);
  deflateEnd(&stream);
  return {gzip, gzip + gzip, zstd};
}

void run(std::string_view input) {
  using namespace flywheel::data;
  constexpr int64_t kLimit = 1 << 16;
  for (const auto& content : {decompress_gzip(input, kLimit), decompress_zstd(input, kLimit)}) {
    if (content.ok()) CHECK(content->size() <= kLimit, "{} bytes", content->size());
  }
}

const FuzzerRegistration registration("decompress", seeds, run);

}  // namespace
