#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <memory>

#include "data/input.h"

namespace flywheel::data {
namespace {

constexpr size_t kStepBytes = size_t{1} << 20;

Error too_large(int64_t max_bytes) {
  return make_error(ErrorCode::kFull, "more than {} bytes when decompressed", max_bytes);
}

}  // namespace

Result<std::string> decompress_gzip(std::string_view bytes, int64_t max_bytes) {
  z_stream stream{};
  if (inflateInit2(&stream, 15 + 32) != Z_OK) return make_error(ErrorCode::kIo, "zlib cannot start");
  std::unique_ptr<z_stream, int (*)(z_streamp)> close(&stream, &inflateEnd);
  std::string out, step(kStepBytes, '\0');
  size_t fed = 0;
  const auto feed = [&] {
    const size_t n = std::min<size_t>(bytes.size() - fed, size_t{1} << 30);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data() + fed));
    stream.avail_in = static_cast<uInt>(n);
    fed += n;
  };
  feed();
  for (;;) {
    stream.next_out = reinterpret_cast<Bytef*>(step.data());
    stream.avail_out = static_cast<uInt>(step.size());
    const int rc = inflate(&stream, Z_NO_FLUSH);
    out.append(step.data(), step.size() - stream.avail_out);
    if (static_cast<int64_t>(out.size()) > max_bytes) return too_large(max_bytes);
    if (stream.avail_in == 0 && fed < bytes.size()) feed();
    if (rc == Z_STREAM_END) {
      // Archives on tapes and of some tools are filled up with zero bytes, which gzip(1) takes too.
      const std::string_view rest = bytes.substr(fed - stream.avail_in);
      if (rest.find_first_not_of('\0') == std::string_view::npos) return out;
      if (inflateReset(&stream) != Z_OK) return make_error(ErrorCode::kIo, "zlib cannot go on");
    } else if (rc != Z_OK || (stream.avail_in == 0 && stream.avail_out != 0)) {
      return make_error(ErrorCode::kInvalid, "broken gzip data near byte {} of {}: {}", fed - stream.avail_in,
                        bytes.size(), stream.msg != nullptr ? stream.msg : "it ends too early");
    }
  }
}

Result<std::string> decompress_zstd(std::string_view bytes, int64_t max_bytes) {
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream(ZSTD_createDStream(), &ZSTD_freeDStream);
  std::string out, step(kStepBytes, '\0');
  ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
  size_t left = 1;
  while (in.pos < in.size) {
    ZSTD_outBuffer to{step.data(), step.size(), 0};
    left = ZSTD_decompressStream(stream.get(), &to, &in);
    if (ZSTD_isError(left)) {
      return make_error(ErrorCode::kInvalid, "broken zstd data near byte {} of {}: {}", in.pos, in.size,
                        ZSTD_getErrorName(left));
    }
    out.append(step.data(), to.pos);
    if (static_cast<int64_t>(out.size()) > max_bytes) return too_large(max_bytes);
    while (to.pos == to.size && left != 0) {  // more is waiting inside
      to.pos = 0;
      left = ZSTD_decompressStream(stream.get(), &to, &in);
      if (ZSTD_isError(left))
        return make_error(ErrorCode::kInvalid, "broken zstd data: {}", ZSTD_getErrorName(left));
      out.append(step.data(), to.pos);
      if (static_cast<int64_t>(out.size()) > max_bytes) return too_large(max_bytes);
    }
  }
  if (left != 0) return make_error(ErrorCode::kInvalid, "broken zstd data: it ends too early");
  return out;
}

}  // namespace flywheel::data
