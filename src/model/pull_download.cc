#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/file.h"
#include "base/filesystem.h"
#include "base/hash.h"
#include "base/http_client.h"
#include "base/log.h"
#include "model/pull_internal.h"

namespace flywheel::model {
namespace {

constexpr int kTries = 6;             // without a single new byte
constexpr int64_t kStallMs = 30'000;  // a server that says nothing for so long is gone

// One request, from where `part` ends. Returns what went wrong with the connection; `fatal` when trying again
// would not help.
Result<void> request_rest(const RemoteFile& file, const std::string& part,
                          const std::map<std::string, std::string>& headers,
                          const std::function<void(uint64_t)>& progress, bool& fatal) {
  const uint64_t have = path_exists(part) ? file_size(part).value_or(0) : 0;
  auto opened = AppendFile::open(part);
  fatal = true;  // the disk's errors
  if (!opened.ok()) return opened.error();
  AppendFile out = std::move(opened).value();
  Result<void> written;
  bool too_long = false;
  int answer = 0;
  const auto reply = http_get(
      file.url,
      {.headers = headers,
       .deadline = Deadline::never(),  // a large file takes what it takes; the stall limit ends a dead one
       .stall_ms = kStallMs,
       .range_from = have > 0 ? static_cast<int64_t>(have) : -1,
       .on_body =
           [&](std::string_view piece) {
             if (answer != 200 && answer != 206) return true;  // an error's page
             // A body without an end must not fill the disk.
             too_long = file.size_bytes != 0 && out.size_bytes() + piece.size() > file.size_bytes;
             if (too_long) return false;
             written = out.append(piece);
             if (written.ok() && progress) progress(out.size_bytes());
             return written.ok();
           },
       .on_headers =
           [&](int status, const auto& reply_headers) {
             answer = status;
             const auto range = reply_headers.find("content-range");
             const std::string from = "bytes " + std::to_string(have) + "-";
             const bool wrong_place =
                 status == 206 && (range == reply_headers.end() || !range->second.starts_with(from));
             if (wrong_place) answer = 0;
             if ((status == 200 || wrong_place) && have > 0) {  // the server begins anew, and so do we
               auto again = AppendFile::open(part, 0);
               if (again.ok())
                 out = std::move(again).value();
               else
                 written = again.error();
             }
           }});
  if (!written.ok()) return written.error();
  if (too_long) {
    ::unlink(part.c_str());
    return make_error(ErrorCode::kCorrupt, "{}: more than its {} bytes came", file.name, file.size_bytes);
  }
  // What no second try would change: a redirect away from http, an address or header that cannot be.
  fatal =
      !reply.ok() && (reply.error().code == ErrorCode::kCorrupt || reply.error().code == ErrorCode::kInvalid);
  if (!reply.ok()) return reply.error();
  if (reply->status == 200 || reply->status == 206) {
    return answer == 0 ? Result<void>(make_error(ErrorCode::kUnavailable,
                                                 "{}: a range that was not asked for", file.name))
                       : Result<void>();
  }
  if (reply->status == 416) {  // ours is longer than theirs
    ::unlink(part.c_str());
    return make_error(ErrorCode::kUnavailable, "{}: the part that is here does not fit", file.name);
  }
  fatal = reply->status < 500 && reply->status != 429 && reply->status != 408;
  const ErrorCode code = reply->status == 401 || reply->status == 403 ? ErrorCode::kDenied
                         : reply->status == 404                       ? ErrorCode::kNotFound
                                                                      : ErrorCode::kUnavailable;
  return make_error(code, "{}: status {}", public_uri(file.url), reply->status);
}

Result<std::string> checksum_of(const std::string& path, const RemoteFile& file) {
  if (file.checksum.size() == 64) return sha256_file(path);
  ASSIGN_OR_RETURN(const std::string bytes, read_file(path));
  return sha1_hex("blob " + std::to_string(bytes.size()) + std::string(1, '\0') + bytes);
}

Result<void> check(const std::string& part, const RemoteFile& file) {
  ASSIGN_OR_RETURN(const uint64_t size, file_size(part));
  if (file.size_bytes != 0 && size != file.size_bytes) {
    return make_error(ErrorCode::kCorrupt, "{}: {} bytes came, not {}", file.name, size, file.size_bytes);
  }
  const bool hex = file.checksum.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!hex || (file.checksum.size() != 64 && file.checksum.size() != 40)) {
    LOG_WARN("{}: the server gives no checksum; {}", file.name,
             file.size_bytes == 0 ? "nor a size: nothing was compared" : "only the size was compared");
    return {};
  }
  ASSIGN_OR_RETURN(const std::string found, checksum_of(part, file));
  if (found == file.checksum) return {};
  return make_error(ErrorCode::kCorrupt, "{}: checksum {} came, not {}", file.name, found, file.checksum);
}

}  // namespace

Result<void> download_file(const RemoteFile& file, const std::string& target,
                           const std::map<std::string, std::string>& headers, int64_t retry_ms,
                           const std::function<void(uint64_t)>& progress) {
  if (path_exists(target)) {  // checked before it got its name, or of a server that told too little for it
    ASSIGN_OR_RETURN(const uint64_t size, file_size(target));
    if (file.size_bytes == 0 || size == file.size_bytes) return {};
    RETURN_IF_ERROR(remove_all(target));
  }
  const std::string part = target + ".part";
  bool checked_before = false;
  int64_t pause_ms = retry_ms;
  for (int failures = 0;;) {
    const uint64_t before = path_exists(part) ? file_size(part).value_or(0) : 0;
    Result<void> got;
    bool fatal = false;
    if (before == 0 || before != file.size_bytes) got = request_rest(file, part, headers, progress, fatal);
    if (got.ok()) {
      auto checked = check(part, file);
      if (checked.ok()) break;
      // Once more from nothing: an old part of something else, or bytes that were damaged on the way.
      ::unlink(part.c_str());
      if (checked_before) return checked;
      checked_before = true;
      continue;
    }
    if (fatal) return got;
    const uint64_t after = path_exists(part) ? file_size(part).value_or(0) : 0;
    if (after > before) failures = 0, pause_ms = retry_ms;
    if (++failures == kTries) return got;
    LOG_WARN("{}: {}; going on at byte {} in {} ms", file.name, got.error().message, after, pause_ms);
    std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms));
    pause_ms = std::min<int64_t>(pause_ms * 2, 10'000);
  }
  if (::rename(part.c_str(), target.c_str()) != 0) {
    return make_error(ErrorCode::kIo, "cannot rename {}: {}", part, std::strerror(errno));
  }
  return {};
}

Result<FileLock> lock_download(const std::string& path) {
  Result<FileLock> lock = FileLock::take(path, Deadline::after_ms(0));
  if (lock.ok() || lock.error().code != ErrorCode::kDeadline) return lock;
  return make_error(ErrorCode::kUnavailable,
                    "another process is pulling the same model; wait for it and try again");
}

}  // namespace flywheel::model
