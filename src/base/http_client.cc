#include "base/http_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <mutex>

#include "base/filesystem.h"

namespace flywheel {
namespace {

struct Transfer {
  const HttpOptions& options;
  CURL* curl;
  HttpReply reply;
  bool headers_told = false, too_large = false, cancelled = false;
};

size_t on_header(char* data, size_t size, size_t count, void* context) {
  auto& transfer = *static_cast<Transfer*>(context);
  std::string_view line(data, size * count);
  while (!line.empty() && (line.back() == '\r' || line.back() == '\n')) line.remove_suffix(1);
  if (line.starts_with("HTTP/")) {
    transfer.reply.headers.clear();  // a new response (after a redirect)
  } else if (const size_t colon = line.find(':'); colon != std::string_view::npos) {
    std::string name(line.substr(0, colon));
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    std::string_view value = line.substr(colon + 1);
    while (value.starts_with(' ')) value.remove_prefix(1);
    transfer.reply.headers[name] = value;
  }
  return size * count;
}

size_t on_data(char* data, size_t size, size_t count, void* context) {
  auto& transfer = *static_cast<Transfer*>(context);
  const std::string_view piece(data, size * count);
  if (!transfer.headers_told) {
    transfer.headers_told = true;
    long status = 0;
    curl_easy_getinfo(transfer.curl, CURLINFO_RESPONSE_CODE, &status);
    transfer.reply.status = static_cast<int>(status);
    if (transfer.options.on_headers)
      transfer.options.on_headers(transfer.reply.status, transfer.reply.headers);
  }
  if (transfer.options.on_body) {
    transfer.cancelled = !transfer.options.on_body(piece);
    return transfer.cancelled ? 0 : piece.size();
  }
  transfer.too_large = transfer.reply.body.size() + piece.size() > transfer.options.max_body_bytes;
  if (transfer.too_large) return 0;
  transfer.reply.body += piece;
  return piece.size();
}

Result<HttpReply> perform(const std::string& url, const char* method, std::string_view body,
                          const HttpOptions& options) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  const std::string shown = public_uri(url);
  for (const auto& [name, value] : options.headers) {  // keys from files and variables come here
    if (std::ranges::any_of(value, [](unsigned char c) { return c < ' ' || c == 0x7F; }))
      return make_error(ErrorCode::kInvalid, "{}: a control character in the header {}", shown, name);
  }
  CURL* curl = curl_easy_init();
  CHECK(curl != nullptr, "curl_easy_init");
  Transfer transfer{options, curl, {}};
  curl_slist* headers = nullptr;
  for (const auto& [name, value] : options.headers)
    headers = curl_slist_append(headers, (name + ": " + value).c_str());
  headers = curl_slist_append(headers, "Expect:");
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "flywheel");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, options.max_redirects > 0 ? 1L : 0L);
  curl_easy_setopt(curl, CURLOPT_MAXREDIRS, static_cast<long>(options.max_redirects));
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS,
                   static_cast<long>(std::max<int64_t>(options.deadline.remaining_ms(), 1)));
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, 10'000L);
  if (options.stall_ms > 0) {  // libcurl counts it in seconds
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, static_cast<long>((options.stall_ms + 999) / 1000));
  }
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  const std::string range = std::to_string(options.range_from) + "-";
  if (options.range_from >= 0) curl_easy_setopt(curl, CURLOPT_RANGE, range.c_str());
  const std::string_view verb = method;
  if (verb == "HEAD") curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
  if (verb == "POST") {
    curl_easy_setopt(curl, CURLOPT_POST, 1L);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body.data());
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
  }
  const CURLcode code = curl_easy_perform(curl);
  long status = 0;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  transfer.reply.status = static_cast<int>(status);
  curl_slist_free_all(headers);
  curl_easy_cleanup(curl);
  if (code == CURLE_OK) {
    if (!transfer.headers_told && options.on_headers)
      options.on_headers(transfer.reply.status, transfer.reply.headers);
    return std::move(transfer.reply);
  }
  if (transfer.too_large)
    return make_error(ErrorCode::kFull, "{}: more than {} bytes", shown, options.max_body_bytes);
  if (transfer.cancelled) return make_error(ErrorCode::kCancelled, "{}: stopped by the reader", shown);
  if (code == CURLE_UNSUPPORTED_PROTOCOL && status >= 300 && status < 400) {
    return make_error(ErrorCode::kCorrupt, "{}: redirects to an address that is neither http nor https",
                      shown);
  }
  const ErrorCode kind = code == CURLE_OPERATION_TIMEDOUT ? ErrorCode::kDeadline
                         : code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL
                             ? ErrorCode::kInvalid
                             : ErrorCode::kUnavailable;
  return make_error(kind, "{}: {}", shown, curl_easy_strerror(code));
}

}  // namespace

Result<HttpReply> http_get(const std::string& url, const HttpOptions& options) {
  return perform(url, "GET", "", options);
}
Result<HttpReply> http_head(const std::string& url, const HttpOptions& options) {
  return perform(url, "HEAD", "", options);
}
Result<HttpReply> http_post(const std::string& url, std::string_view body, const HttpOptions& options) {
  return perform(url, "POST", body, options);
}

}  // namespace flywheel
