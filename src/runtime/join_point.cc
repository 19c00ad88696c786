#include "runtime/join_point.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <array>
#include <filesystem>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/posix.h"

namespace flywheel::runtime {
namespace {

constexpr int kVersion = 1;
constexpr size_t kSecretBytes = 32;

// A key pair of CURVE whose secret half is a hash.
Result<std::pair<std::string, std::string>> pair_of(const std::string& text) {
  const std::string hex = sha256_hex(text);
  std::array<uint8_t, 32> bytes{};
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<uint8_t>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
  std::array<char, 41> secret{}, open{};
  zmq_z85_encode(secret.data(), bytes.data(), bytes.size());
  if (zmq_curve_public(open.data(), secret.data()) != 0) {
    return make_error(ErrorCode::kUnavailable, "this libzmq was built without CURVE (libsodium)");
  }
  return std::pair<std::string, std::string>(open.data(), secret.data());
}

}  // namespace

Result<JoinPoint> read_join_file(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return system_error("cannot look at", path);
  if (info.st_uid != ::geteuid() || (info.st_mode & 077) != 0) {
    return make_error(ErrorCode::kDenied,
                      "{} holds keys and must be this user's, readable by nobody else (mode 600)", path);
  }
  ASSIGN_OR_RETURN(const std::string text, read_file(path));
  ASSIGN_OR_RETURN(const Json json, parse_json(text));
  const auto version = json.find("version");
  if (version == json.end() || *version != kVersion) {
    return make_error(ErrorCode::kCorrupt, "{} is no join file of version {}", path, kVersion);
  }
  JoinPoint point{text_of(json, "endpoint"), {}};
  ASSIGN_OR_RETURN(point.keys, Keys::from_text(text_of(json, "keys")));
  if (point.endpoint.empty() || point.keys.empty()) {
    return make_error(ErrorCode::kCorrupt, "{} has no endpoint or no keys", path);
  }
  return point;
}

Result<JoinFile> JoinFile::write(const std::string& path, const JoinPoint& point) {
  RETURN_IF_ERROR(make_folders(std::filesystem::path(path).parent_path().string()));
  JoinFile file;
  file.text_ =
      Json{{"version", kVersion}, {"endpoint", point.endpoint}, {"keys", point.keys.to_text()}}.dump();
  const std::string temporary = fmt::format("{}.tmp.{}", path, ::getpid());
  ::unlink(temporary.c_str());
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return system_error("cannot create", temporary);
  const Result<void> written = write_all(fd, temporary, file.text_);
  ::close(fd);
  RETURN_IF_ERROR(written);
  if (::rename(temporary.c_str(), path.c_str()) != 0) return system_error("cannot create", path);
  file.path_ = path;
  return file;
}

JoinFile::~JoinFile() {
  if (!path_.empty() && read_file(path_).value_or("") == text_) ::unlink(path_.c_str());
}

JoinFile& JoinFile::operator=(JoinFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(text_, other.text_);
  return *this;
}

Result<Keys> keys_from_secret(std::string_view secret) {
  if (secret.size() < kSecretBytes) {
    return make_error(ErrorCode::kInvalid, "a secret of {} characters is too short: {} are needed",
                      secret.size(), kSecretBytes);
  }
  Keys keys;
  ASSIGN_OR_RETURN(const auto server, pair_of("flywheel join, server\n" + std::string(secret)));
  ASSIGN_OR_RETURN(const auto client, pair_of("flywheel join, client\n" + std::string(secret)));
  keys.server_public = server.first, keys.server_secret = server.second;
  keys.client_public = client.first, keys.client_secret = client.second;
  return keys;
}

Result<Keys> keys_from_secret_file(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return system_error("cannot look at", path);
  if ((info.st_mode & 007) != 0) {  // a group may: Kubernetes mounts it so
    return make_error(ErrorCode::kDenied, "{} is open to every user of this machine: chmod 600 {}", path,
                      path);
  }
  ASSIGN_OR_RETURN(const std::string secret, read_secret_file(path));
  return keys_from_secret(secret);
}

Result<std::string> read_secret_file(const std::string& path) {
  ASSIGN_OR_RETURN(std::string text, read_file(path));
  while (text.ends_with('\n') || text.ends_with('\r')) text.pop_back();
  return text;
}

}  // namespace flywheel::runtime
