#include "base/env.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "base/result.h"

namespace flywheel::env {

std::string get(const char* name) {
  const char* value =
      std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nobody sets variables after main began
  return value == nullptr ? "" : value;
}

std::string secret(const char* name) {
  std::string value = get(name);
  value.erase(0, value.find_first_not_of(" \t\r\n"));
  value.erase(value.find_last_not_of(" \t\r\n") + 1);
  if (std::ranges::any_of(value, [](unsigned char c) { return c < ' ' || c == 0x7F; })) {
    throw UserError(name, "has a line end or another control character in it",
                    "set it again, as one line (its value is not repeated here)");
  }
  return value;
}

std::string home() {
  std::string home = get("FLYWHEEL_HOME");
  if (home.empty()) {
    const std::string user = get("HOME");
    if (user.empty()) {
      throw UserError("FLYWHEEL_HOME", "neither it nor HOME is set",
                      "give the folder for runs, artifacts and models with --home");
    }
    home = user + "/.flywheel";
  }
  home = std::filesystem::absolute(home).lexically_normal().string();
  if (home.size() > 1 && home.ends_with('/')) home.pop_back();
  return home;
}

std::string store() {
  return get("FLYWHEEL_STORE");
}

std::string log_level() {
  std::string level = get("FLYWHEEL_LOG");
  return level.empty() ? "info" : level;
}

std::string test_data() {
  if (std::string folder = get("FLYWHEEL_TEST_DATA"); !folder.empty()) return folder;
#ifdef FLYWHEEL_PROJECT_DIR
  const std::filesystem::path beside =
      std::filesystem::path(FLYWHEEL_PROJECT_DIR).parent_path() / "shared/data";
  if (std::filesystem::is_directory(beside)) return beside.string();
#endif
  return "";
}

std::string isa_limit() {
  return get("FLYWHEEL_ISA");
}
std::string hub_url() {
  std::string url = get("HF_ENDPOINT");
  while (url.ends_with('/')) url.pop_back();
  return url.empty() ? "https://huggingface.co" : url;
}
std::string hub_token() {
  return secret("HF_TOKEN");
}
bool no_color() {
  return !get("NO_COLOR").empty();
}

}  // namespace flywheel::env
