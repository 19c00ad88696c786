// Part 1: the HTML of documentation packages into a clean dataset with its own tokenizer.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>

#include "base/file.h"
#include "base/progress.h"
#include "data/prepare.h"
#include "demo/demo.h"

namespace flywheel::cli::demo {
namespace {

namespace fs = std::filesystem;

// The documentation that Debian and Ubuntu packages leave here, each folder once (some are links to others);
// versions differ between releases.
std::vector<std::string> documentation_folders() {
  std::set<std::string> folders;
  std::error_code error;
  const auto add = [&](const fs::path& folder) {
    if (fs::is_directory(folder, error)) folders.insert(fs::canonical(folder, error).string());
  };
  for (const auto& entry : fs::directory_iterator("/usr/share/doc", error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("postgresql-doc-") || name.starts_with("python3.")) add(entry.path() / "html");
  }
  add("/usr/share/debian-reference");
  return {folders.begin(), folders.end()};
}

}  // namespace

void run_data(Context& context) {
  heading("data: real HTML becomes a clean dataset");
  data::PrepareRequest request;
  request.inputs = documentation_folders();
  if (request.inputs.empty()) {
    throw UserError("/usr/share/doc", "no documentation to learn from",
                    "install it with: apt install postgresql-doc-15 python3.11-doc debian-reference-en");
  }
  for (const auto& folder : request.inputs) say("reads", folder);
  request.output = context.folder + "/data";
  request.config.name = kDataset;
  request.config.tokenizer.vocab_size = 4096;
  request.store = &context.store;

  std::unique_ptr<ProgressBar> bar;
  std::string stage_shown;
  request.progress = [&](const std::string& stage, int64_t done, int64_t total) {
    if (stage != stage_shown) {
      bar = std::make_unique<ProgressBar>(stage, total);
      stage_shown = stage;
    }
    bar->update(done);
  };
  const data::PrepareReport report = data::prepare(request).value_or_throw("data");
  bar.reset();
  std::printf("\n%s\n", data::to_text(report).c_str());

  OrderedJson& figures = context.figures["data"];
  figures = {{"files", report.files}, {"bytes", report.bytes}, {"seconds", report.seconds}};
  figures["mb_per_second"] = static_cast<double>(report.bytes) / 1e6 / std::max(report.seconds, 1e-9);
  for (const auto& stage : report.stages) {
    figures["stages"][stage.name] = {{"documents_in", stage.documents_in},
                                     {"documents_out", stage.documents_out},
                                     {"seconds", stage.seconds},
                                     {"reused", stage.reused}};
  }
  say("read", fmt::format("{} files, {} in {} ({:.1f} MB/s)", human_count(report.files),
                          human_bytes(static_cast<double>(report.bytes)), human_seconds(report.seconds),
                          figures["mb_per_second"].get<double>()));
  say("lies in", request.output + " (dropped.jsonl says for each document why)");
}

}  // namespace flywheel::cli::demo
