// A model hub that speaks Hugging Face's HTTP layout (huggingface.co/docs/hub/api):
//   GET  /api/models/{repo}[/revision/{revision}]   {"sha": commit, "siblings": [{"rfilename": ...}]}
//   HEAD /{repo}/resolve/{commit}/{file}            ETag (git blob SHA-1), or for large files a redirect with
//                                                   X-Linked-Etag (SHA-256) and X-Linked-Size
//   GET  the same, with Range
// Files are asked for by commit, so all are of one revision, whatever is pushed meanwhile.
#include <algorithm>

#include "base/env.h"
#include "base/file.h"
#include "base/filesystem.h"
#include "base/hash.h"
#include "base/http_client.h"
#include "model/pull_internal.h"

namespace flywheel::model {
namespace {

using Headers = std::map<std::string, std::string>;

Error bad_status(const std::string& what, int status) {
  if (status == 401 || status == 403) {
    return make_error(ErrorCode::kDenied,
                      "{}: the hub refuses (status {}); is HF_TOKEN set, and access granted?", what, status);
  }
  if (status == 404) return make_error(ErrorCode::kNotFound, "{}: the hub has no such thing", what);
  return make_error(ErrorCode::kUnavailable, "{}: the hub answers with status {}; try again later", what,
                    status);
}

Error not_a_hub(const std::string& url, const std::string& why) {
  return make_error(ErrorCode::kUnavailable,
                    "{}: {}, not what a model hub answers; look at that address with curl: is HF_ENDPOINT a "
                    "hub's address, and is there a proxy or a page to sign in between?",
                    public_uri(url), why);
}

bool is_control(unsigned char c) {
  return c < ' ' || c == 0x7F;
}

struct Listing {
  std::string commit;
  std::vector<std::string> files;
};

Result<Listing> list_files(const std::string& hub, const std::string& repository, const std::string& revision,
                           const Headers& headers) {
  std::string url = hub + "/api/models/" + repository;
  if (!revision.empty()) url += "/revision/" + revision;
  ASSIGN_OR_RETURN(const HttpReply reply, http_get(url, {.headers = headers}));
  if (reply.status != 200)
    return bad_status(repository + (revision.empty() ? "" : "@" + revision), reply.status);
  const Result<Json> parsed = parse_json(reply.body);
  if (!parsed.ok()) return not_a_hub(url, "no JSON");
  const Json& json = *parsed;
  if (!json.is_object() || !json.contains("siblings") || !json["siblings"].is_array())
    return not_a_hub(url, "JSON without a list of files");
  Listing listing;
  listing.commit = json.value("sha", Json()).is_string() ? json["sha"].get<std::string>() : revision;
  for (const Json& sibling : json["siblings"]) {
    if (sibling.is_object() && sibling.contains("rfilename") && sibling["rfilename"].is_string()) {
      listing.files.push_back(sibling["rfilename"].get<std::string>());
      // It is said in messages and on the progress bar, and a terminal obeys what begins with an escape.
      if (std::ranges::any_of(listing.files.back(), is_control))
        return not_a_hub(url, "a file's name with control characters");
    }
  }
  if (listing.commit.empty()) listing.commit = "main";
  const auto odd = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '-' && c != '_';
  };
  if (std::ranges::any_of(listing.commit, odd)) return not_a_hub(url, "a commit that cannot be a name");
  if (listing.files.empty()) return make_error(ErrorCode::kInvalid, "{}: holds no files", repository);
  return listing;
}

// What to take of a repository: safetensors with everything small beside them, else one GGUF. Weights that
// are pickled Python programs are never taken.
Result<std::vector<std::string>> choose_files(const std::string& repository, const Listing& listing,
                                              const std::string& wanted) {
  std::vector<std::string> weights, ggufs, others;
  for (const std::string& file : listing.files) {
    const bool top = file.find('/') == std::string::npos;
    if (file.ends_with(".gguf"))
      ggufs.push_back(file);
    else if (top && file.ends_with(".safetensors"))
      weights.push_back(file);
    else if (top && (file.ends_with(".json") || file.ends_with(".model") || file.ends_with(".jinja") ||
                     file.ends_with(".tiktoken") || file == "merges.txt" || file == "vocab.txt" ||
                     file == "README.md" || file.starts_with("LICENSE"))) {
      others.push_back(file);
    }
  }
  const bool gguf_wanted =
      !wanted.empty() && std::ranges::any_of(ggufs, [&](const auto& f) { return matches(wanted, f); });
  if (!weights.empty() && !gguf_wanted && wanted.empty()) {
    weights.insert(weights.end(), others.begin(), others.end());
    return weights;
  }
  if (ggufs.empty()) {
    return make_error(ErrorCode::kInvalid, "{}: neither safetensors nor GGUF files{}", repository,
                      wanted.empty() ? "" : " that match " + wanted);
  }
  ASSIGN_OR_RETURN(std::string one, choose_one(repository, ggufs, wanted));
  return std::vector<std::string>{std::move(one)};
}

std::string escape_path(const std::string& path) {
  std::string out;
  for (const char c : path) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || std::string_view("-._~/").find(c) != std::string_view::npos)
      out += c;
    else
      out += fmt::format("%{:02X}", byte);
  }
  return out;
}

std::string without_quotes(std::string etag) {
  if (etag.starts_with("W/")) etag.erase(0, 2);
  std::erase(etag, '"');
  return etag;
}

// The file's checksum and size, from the hub itself: what a redirect's target says of itself is not used.
Result<RemoteFile> look_at(const std::string& hub, const std::string& repository, const std::string& commit,
                           const std::string& name, const Headers& headers) {
  RemoteFile file{.url = hub + "/" + repository + "/resolve/" + commit + "/" + escape_path(name),
                  .name = repository + "/" + name};
  std::string url = file.url;
  for (int hops = 0; hops < 5; ++hops) {
    ASSIGN_OR_RETURN(const HttpReply reply, http_head(url, {.headers = headers, .max_redirects = 0}));
    const auto header = [&](const char* key) {
      const auto found = reply.headers.find(key);
      return found == reply.headers.end() ? std::string() : found->second;
    };
    const bool redirect = reply.status >= 300 && reply.status < 400;
    const std::string linked = header("x-linked-etag");
    if (redirect && linked.empty() && header("location").starts_with("/")) {
      url = hub + header("location");  // the repository was renamed
      continue;
    }
    if (!redirect && reply.status != 200) return bad_status(file.name, reply.status);
    file.checksum = without_quotes(linked.empty() ? header("etag") : linked);
    const std::string size = linked.empty() ? header("content-length") : header("x-linked-size");
    if (redirect && linked.empty())
      file.checksum.clear();
    else if (!size.empty())
      file.size_bytes = std::strtoull(size.c_str(), nullptr, 10);
    return file;
  }
  return make_error(ErrorCode::kUnavailable, "{}: redirected in a circle", public_uri(file.url));
}

bool good_repository(const std::string& repository) {
  const auto good = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '-' || c == '_' || c == '/';
  };
  return std::ranges::count(repository, '/') == 1 && repository.front() != '/' && repository.back() != '/' &&
         std::ranges::all_of(repository, good) && repository.find("..") == std::string::npos;
}

}  // namespace

Result<Fetched> fetch_from_hub(const PullRequest& request, const std::string& repository,
                               const std::string& downloads, const IsStored& is_stored) {
  if (!good_repository(repository)) {
    return make_error(ErrorCode::kInvalid, "\"{}\" is not owner/repository", repository);
  }
  const std::string hub = request.hub_url.empty() ? env::hub_url() : request.hub_url;
  const std::string token = request.hub_token.empty() ? env::hub_token() : request.hub_token;
  Headers headers;
  if (!token.empty()) headers["Authorization"] = "Bearer " + token;
  ASSIGN_OR_RETURN(const Listing listing,
                   list_files(hub, repository, escape_path(request.revision), headers));
  ASSIGN_OR_RETURN(const auto names, choose_files(repository, listing, request.file));
  Fetched fetched{.default_name = repository};
  fetched.metadata = {{"source", "hf:" + repository}, {"revision", listing.commit}};
  if (is_stored(fetched.metadata, names)) return fetched;

  std::vector<RemoteFile> files;
  uint64_t all_bytes = 0;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(RemoteFile file, look_at(hub, repository, listing.commit, name, headers));
    all_bytes += file.size_bytes;
    files.push_back(std::move(file));
  }
  const std::string folder =
      downloads + "/" + sha256_hex(hub + " " + repository + " " + listing.commit).substr(0, 24);
  ASSIGN_OR_RETURN(const FileLock lock, lock_download(folder + ".lock"));
  RETURN_IF_ERROR(make_folders(folder));
  uint64_t before = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    ASSIGN_OR_RETURN(const std::string target, path_within(folder, names[i]));
    RETURN_IF_ERROR(make_folders(target.substr(0, target.rfind('/'))));
    RETURN_IF_ERROR(download_file(files[i], target, headers, request.retry_ms, [&](uint64_t done) {
      if (request.progress) request.progress(names[i], before + done, all_bytes);
    }));
    before += files[i].size_bytes;
  }
  fetched.scratch = folder;
  fetched.path = names.size() == 1 && names[0].ends_with(".gguf") ? folder + "/" + names[0] : folder;
  return fetched;
}

}  // namespace flywheel::model
