#include <arrow/filesystem/s3fs.h>
#include <arrow/util/io_util.h>
#include <arrow/util/uri.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <functional>
#include <mutex>
#include <system_error>

#include "base/check.h"
#include "base/env.h"
#include "base/filesystem_internal.h"

namespace flywheel {
namespace {

constexpr int kTries = 4;
constexpr int64_t kFirstWaitMs = 100;  // doubled from try to try

// A request is tried kTries times at most; S3Options gives each try its share of the time.
class BoundedRetries : public arrow::fs::S3RetryStrategy {
 public:
  bool ShouldRetry(const AWSErrorDetail& error, int64_t attempted_retries) override {
    return error.should_retry && attempted_retries + 1 < kTries;
  }
  int64_t CalculateDelayBeforeNextRetry(const AWSErrorDetail&, int64_t attempted_retries) override {
    return kFirstWaitMs << std::clamp<int64_t>(attempted_retries, 0, kTries);
  }
};

// Arrow makes a static object with the first client that what it made at the start still uses when it ends.
// Static objects are destroyed last made first: shut down from a destructor of one, ours or Arrow's own, the
// library uses memory that is freed. So it ends before any of them, with the ObjectStoreSession of main().
std::mutex s3_mutex;
enum class S3 : uint8_t { kNoSession, kNotStarted, kStarted, kEnded } s3_library = S3::kNoSession;

Result<void> start_s3() {
  const std::lock_guard lock(s3_mutex);
  switch (s3_library) {
    case S3::kNoSession:
      return make_error(ErrorCode::kUnavailable,
                        "this program does not open s3:// addresses: its main() holds no ObjectStoreSession");
    case S3::kEnded:
      return make_error(ErrorCode::kUnavailable, "s3:// is closed: the program is ending");
    case S3::kStarted:
      return {};
    case S3::kNotStarted:
      break;
  }
  arrow::fs::S3GlobalOptions options = arrow::fs::S3GlobalOptions::Defaults();
  options.log_level = arrow::fs::S3LogLevel::Off;  // what went wrong comes back as an error
  options.install_sigpipe_handler = true;          // a server that hangs up is no reason to die
  const arrow::Status started = arrow::fs::InitializeS3(options);
  if (!started.ok()) return make_error(ErrorCode::kUnavailable, "{}", started.message());
  s3_library = S3::kStarted;
  return {};
}

std::string first_set(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (std::string value = env::get(name); !value.empty()) return value;
  }
  return "";
}

bool has_query_key(const std::string& uri, const std::string& key) {
  const size_t query = uri.find('?');
  if (query == std::string::npos) return false;
  return uri.find("?" + key + "=", query) != std::string::npos ||
         uri.find("&" + key + "=", query) != std::string::npos;
}

void add_query(std::string& uri, const std::string& key, const std::string& value) {
  uri += (uri.find('?') == std::string::npos ? "?" : "&") + key + "=" + value;
}

std::string query_value(const std::string& uri, const std::string& key) {
  const size_t query = uri.find('?');
  size_t at = query == std::string::npos ? query : uri.find(key + "=", query);
  if (at == std::string::npos) return "";
  at += key.size() + 1;
  return uri.substr(at, uri.find('&', at) - at);
}

// The server that a variable names ("http://127.0.0.1:9000"), as the query of a URI that names none.
Result<void> add_endpoint(std::string& uri, const std::string& url, const char* default_scheme) {
  if (url.empty() || has_query_key(uri, "endpoint_override")) return {};
  std::string scheme = uri_scheme(url);
  std::string server = scheme.empty() ? url : url.substr(scheme.size() + 3);
  if (scheme.empty()) scheme = default_scheme;
  while (server.ends_with('/')) server.pop_back();
  if ((scheme != "http" && scheme != "https") || server.find_first_of("/?&@ ") != std::string::npos ||
      server.empty()) {
    return make_error(ErrorCode::kInvalid,
                      "the environment names a server that is no address: {}; write it as "
                      "http://host:port",
                      public_uri(url));
  }
  add_query(uri, "endpoint_override", server);
  if (!has_query_key(uri, "scheme")) add_query(uri, "scheme", scheme);
  return {};
}

// Calls use(begin, end) for each value in the query that is a key by its name (access_key, secret_key,
// X-Amz-Signature, ...), the last first.
void for_each_secret_value(const std::string& uri, const std::function<void(size_t, size_t)>& use) {
  const size_t query = uri.find('?');
  for (size_t end = uri.size(); query != std::string::npos && end > query;) {
    const size_t begin = uri.find_last_of("?&", end - 1) + 1;
    const size_t equals = uri.find('=', begin);
    if (equals < end) {
      std::string name = uri.substr(begin, equals - begin);
      std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
      for (const char* word : {"key", "secret", "token", "password", "signature", "credential"}) {
        if (name.find(word) == std::string::npos) continue;
        use(equals + 1, end);
        break;
      }
    }
    end = begin - 1;
  }
}

// What stands before the host: "user:password" or "". AWS's secrets have slashes, and people paste them as
// they are
// ("key:se/cret@bucket"): where a colon in front of the path begins no port, it begins a password.
std::string user_info(const std::string& uri) {
  const std::string scheme = uri_scheme(uri);
  const size_t begin = scheme.size() + 3;
  const size_t end = std::min(uri.find_first_of("/?", begin), uri.size());
  size_t at = uri.substr(0, end).rfind('@');
  const size_t colon = uri.substr(0, end).find(':', begin);
  if (at == std::string::npos && colon != std::string::npos) {
    const bool port = scheme != "s3" && uri.find_first_not_of("0123456789", colon + 1) >= end;
    at = port ? at : uri.find('@', end);
  }
  return at == std::string::npos || at < begin ? "" : uri.substr(begin, at - begin);
}

// The slashes of a password as a URI wants them.
std::string with_escaped_password(std::string uri) {
  const size_t begin = uri_scheme(uri).size() + 3;
  size_t end = begin + user_info(uri).size();
  for (size_t at; (at = uri.find('/', begin)) < end; end += 2) uri.replace(at, 1, "%2F");
  return uri;
}

std::vector<std::string> secrets_of(const std::string& uri) {
  std::vector<std::string> secrets = {env::get("AWS_SECRET_ACCESS_KEY"), env::get("AWS_SESSION_TOKEN")};
  const std::string info = user_info(uri);
  if (const size_t colon = info.find(':'); colon != std::string::npos) {
    secrets.push_back(info.substr(colon + 1));
    secrets.push_back(arrow::util::UriUnescape(secrets.back()));
  }
  for_each_secret_value(uri, [&](size_t begin, size_t end) {
    secrets.push_back(uri.substr(begin, end - begin));
    secrets.push_back(arrow::util::UriUnescape(secrets.back()));
  });
  std::erase_if(secrets, [](const std::string& secret) { return secret.size() < 4; });
  return secrets;
}

arrow::Result<std::shared_ptr<arrow::fs::FileSystem>> make_s3(const std::string& uri, int64_t timeout_ms,
                                                              std::string* root) {
  const std::shared_ptr<arrow::fs::S3RetryStrategy> retries = std::make_shared<BoundedRetries>();
  ARROW_ASSIGN_OR_RAISE(arrow::fs::S3Options options,
                        arrow::fs::S3Options::FromUriAndOptions(uri, {{"retry_strategy", retries}}, root));
  const int64_t waits_ms = kFirstWaitMs * ((1 << (kTries - 1)) - 1);
  const double try_s =
      static_cast<double>(std::max<int64_t>(timeout_ms - waits_ms, kTries * 100)) / 1e3 / kTries;
  options.connect_timeout = options.request_timeout = try_s;
  ARROW_ASSIGN_OR_RAISE(auto fs, arrow::fs::S3FileSystem::Make(options));
  return fs;
}

const char* hint_for(ErrorCode code, const std::string& scheme) {
  if (scheme == "s3" && code == ErrorCode::kDenied) {
    return "the server did not accept the key: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
           "AWS_PROFILE";
  }
  if (scheme == "gs" && code == ErrorCode::kDenied) {
    return "the server did not accept the login: set GOOGLE_APPLICATION_CREDENTIALS, or write "
           "gs://anonymous@bucket for public data";
  }
  if (scheme == "hdfs") {
    return "hdfs:// needs Java and Hadoop's client: set JAVA_HOME and HADOOP_HOME, and CLASSPATH to the "
           "output of "
           "`hadoop classpath --glob`";
  }
  if (scheme == "s3" && code == ErrorCode::kUnavailable) {
    return "is the server up, and is AWS_ENDPOINT_URL (or endpoint_override in the address) right?";
  }
  if (scheme == "gs" && code == ErrorCode::kUnavailable) {
    return "is the server up, and is STORAGE_EMULATOR_HOST right?";
  }
  return "";
}

ErrorCode code_of(const arrow::Status& status) {
  const std::string& what = status.message();
  const auto says = [&](std::initializer_list<const char*> words) {
    return std::any_of(words.begin(), words.end(),
                       [&](const char* word) { return what.find(word) != std::string::npos; });
  };
  switch (arrow::internal::ErrnoFromStatus(status)) {
    case 0:
      break;
    case ENOENT:
      return ErrorCode::kNotFound;
    case EACCES:
    case EPERM:
      return ErrorCode::kDenied;
    default:
      return ErrorCode::kIo;
  }
  // First: what the system said about the library stands in it too ("No such file or directory").
  if (says({"Unable to load lib"})) return ErrorCode::kUnavailable;
  if (status.IsKeyError() || says({"No such file", "ath does not exist", "not found", "NO_SUCH_BUCKET",
                                   "NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "NOT_FOUND"})) {
    return ErrorCode::kNotFound;
  }
  if (says({"ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID",
            "EXPIRED_TOKEN", "MISSING_AUTHENTICATION_TOKEN", "PERMISSION_DENIED", "UNAUTHENTICATED",
            "HTTP status 401", "HTTP status 403"})) {
    return ErrorCode::kDenied;
  }
  if (status.IsNotImplemented() ||
      says({"NETWORK_CONNECTION", "REQUEST_TIMEOUT", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "UNAVAILABLE",
            "DEADLINE_EXCEEDED", "HTTP status 50"})) {
    return ErrorCode::kUnavailable;
  }
  return status.IsInvalid() ? ErrorCode::kInvalid : ErrorCode::kIo;
}

}  // namespace

ObjectStoreSession::ObjectStoreSession() {
  const std::lock_guard lock(s3_mutex);
  CHECK(s3_library == S3::kNoSession, "a program holds one ObjectStoreSession, in main()");
  s3_library = S3::kNotStarted;
}

ObjectStoreSession::~ObjectStoreSession() {
  const std::lock_guard lock(s3_mutex);
  if (s3_library == S3::kStarted) (void)arrow::fs::EnsureS3Finalized();
  s3_library = S3::kEnded;
}

std::string uri_scheme(const std::string& uri) {
  const size_t at = uri.find("://");
  return at == std::string::npos ? "" : uri.substr(0, at);
}

std::string public_uri(const std::string& uri) {
  if (uri_scheme(uri).empty()) return uri;
  std::string shown = uri;
  for_each_secret_value(uri,
                        [&](size_t begin, size_t end) { shown.replace(begin, end - begin, "(secret)"); });
  if (const std::string info = user_info(uri); !info.empty())
    shown.erase(uri_scheme(uri).size() + 3, info.size() + 1);
  return shown;
}

Error from_arrow(const arrow::Status& status, const std::string& where, const RemoteFileSystem& remote) {
  const ErrorCode code = code_of(status);
  std::string what = status.message().substr(0, status.message().find('\n'));
  what.resize(std::min(what.find(" error_info={"), what.size()));  // Google's library repeats itself there
  for (const std::string& secret : remote.secrets) {
    for (size_t at; (at = what.find(secret)) != std::string::npos;)
      what.replace(at, secret.size(), "(secret)");
  }
  if (const int number = arrow::internal::ErrnoFromStatus(status); number != 0) {
    what += ": " + std::generic_category().message(number);
  }
  const std::string hint = hint_for(code, uri_scheme(where));
  return make_error(code, "{}: {}{}{}{}", where, what,
                    remote.server.empty() ? "" : "; server " + remote.server, hint.empty() ? "" : "; ", hint);
}

Result<RemoteFileSystem> open_remote(const std::string& uri, const FileSystemOptions& options) {
  RemoteFileSystem remote;
  std::string target = with_escaped_password(uri);
  remote.secrets = secrets_of(target);
  const std::string scheme = uri_scheme(uri);
  if (scheme == "s3") {
    RETURN_IF_ERROR(start_s3());
    RETURN_IF_ERROR(add_endpoint(target, first_set({"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}), "https"));
    std::string region = first_set({"AWS_REGION", "AWS_DEFAULT_REGION"});
    // Servers of one's own take any; without one the library asks AWS where the bucket lies.
    if (region.empty() && has_query_key(target, "endpoint_override")) region = "us-east-1";
    if (!region.empty() && !has_query_key(target, "region")) add_query(target, "region", region);
  } else if (scheme == "gs" || scheme == "gcs") {
    const std::string emulator = first_set({"STORAGE_EMULATOR_HOST", "CLOUD_STORAGE_EMULATOR_ENDPOINT"});
    RETURN_IF_ERROR(add_endpoint(target, emulator, "http"));
    if (!emulator.empty() && user_info(target).empty()) target.insert(scheme.size() + 3, "anonymous@");
    if (!has_query_key(target, "retry_limit_seconds")) {
      add_query(target, "retry_limit_seconds",
                fmt::format("{}", static_cast<double>(options.timeout_ms) / 1e3));
    }
  }
  remote.server = query_value(target, "endpoint_override");
  auto fs = scheme == "s3" ? make_s3(target, options.timeout_ms, &remote.root)
                           : arrow::fs::FileSystemFromUri(target, &remote.root);
  if (!fs.ok()) return from_arrow(fs.status(), public_uri(uri), remote);
  remote.fs = *fs;
  return remote;
}

}  // namespace flywheel
