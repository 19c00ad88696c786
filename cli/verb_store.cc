// flywheel store: what the store holds, where it came from, and its upkeep.
#include <cstdio>
#include <set>

#include "base/progress.h"
#include "cli.h"
#include "store/store.h"
#include "subcommands.h"
#include "table.h"

namespace flywheel::cli {
namespace {

using store::Artifact;
using store::Store;

std::string join(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : ", ") + word;
  return out;
}

Json to_json(const Artifact& artifact) {
  Json files = Json::array();
  for (const auto& file : artifact.files) {
    files.push_back({{"path", file.path}, {"sha256", file.sha256}, {"size_bytes", file.size_bytes}});
  }
  return {{"ref", artifact.ref()},
          {"kind", artifact.kind},
          {"name", artifact.name},
          {"version", artifact.version},
          {"digest", artifact.digest},
          {"size_bytes", artifact.size_bytes},
          {"aliases", artifact.aliases},
          {"owner", artifact.owner},
          {"run", artifact.run},
          {"metadata", artifact.metadata},
          {"created_ms", artifact.created_ms},
          {"removed_ms", artifact.removed_ms},
          {"files", files}};
}

Store open_store() {
  return Store::open().value_or_throw();
}

struct Options {
  std::string ref, alias;
  store::ArtifactFilter filter;
  bool json = false, downstream = false, verify = false, dry_run = false, remove = false;
};

int list(const Options& options) {
  Store store = open_store();
  const auto artifacts = store.list_artifacts(options.filter).value_or_throw();
  if (artifacts.empty() && !options.filter.kind.empty()) {
    std::set<std::string> known = {"source", "dataset", "tokenizer", "checkpoint", "model", "adapter"};
    for (const Artifact& any : store.list_artifacts({.removed = true}).value_or_throw())
      known.insert(any.kind);
    check_known("--kind", options.filter.kind, known);
  }
  if (options.json) {
    Json out = Json::array();
    for (const Artifact& artifact : artifacts) out.push_back(to_json(artifact));
    print_json(out);
    return 0;
  }
  std::vector<std::vector<std::string>> rows{{"ARTIFACT", "KIND", "ALIASES", "SIZE", "RUN", "CREATED"}};
  for (const Artifact& artifact : artifacts) {
    rows.push_back(
        {artifact.ref(), artifact.kind, join(artifact.aliases),
         artifact.removed_ms != 0 ? "removed" : human_bytes(static_cast<double>(artifact.size_bytes)),
         artifact.run.empty() ? "-" : artifact.run, format_time(artifact.created_ms)});
  }
  std::fputs(format_table(rows).c_str(), stdout);
  if (artifacts.empty()) {
    const bool chosen = !options.filter.kind.empty() || !options.filter.name.empty();
    std::fprintf(stderr, "%s in %s\n", chosen ? "no such artifact" : "nothing yet", store.home().c_str());
  }
  return 0;
}

int show(const Options& options) {
  Store store = open_store();
  const Artifact artifact = store.resolve(options.ref).value_or_throw();
  const auto history = store.alias_history(artifact.name).value_or_throw();
  if (options.json) {
    Json out = to_json(artifact);
    out["alias_history"] = Json::array();
    for (const auto& change : history) {
      out["alias_history"].push_back({{"alias", change.alias},
                                      {"version", change.version},
                                      {"owner", change.owner},
                                      {"time_ms", change.time_ms}});
    }
    print_json(out);
    return 0;
  }
  std::vector<std::vector<std::string>> rows{{artifact.ref(), artifact.kind},
                                             {"aliases", join(artifact.aliases)},
                                             {"owner", artifact.owner},
                                             {"made by", artifact.run.empty() ? "-" : "run " + artifact.run},
                                             {"created", format_time(artifact.created_ms)},
                                             {"digest", artifact.digest},
                                             {"size", human_bytes(static_cast<double>(artifact.size_bytes))}};
  if (artifact.removed_ms != 0) rows.push_back({"removed", format_time(artifact.removed_ms)});
  for (const auto& [key, value] : artifact.metadata.items()) {
    rows.push_back({key, value.is_string() ? value.get<std::string>() : value.dump()});
  }
  std::fputs(format_table(rows).c_str(), stdout);
  if (!artifact.files.empty()) {
    rows = {{"\nFILE", "SIZE", "SHA-256"}};
    for (const auto& file : artifact.files) {
      rows.push_back({file.path, human_bytes(static_cast<double>(file.size_bytes)), file.sha256});
    }
    std::fputs(format_table(rows).c_str(), stdout);
  }
  if (!history.empty()) {
    rows = {{"\nALIAS", "VERSION", "BY", "AT"}};
    for (const auto& change : history) {
      rows.push_back({change.alias, change.version == 0 ? "removed" : std::to_string(change.version),
                      change.owner, format_time(change.time_ms)});
    }
    std::fputs(format_table(rows).c_str(), stdout);
  }
  return 0;
}

int lineage(const Options& options) {
  Store store = open_store();
  const auto root = store
                        .lineage(options.ref, options.downstream ? Store::Direction::kDownstream
                                                                 : Store::Direction::kUpstream)
                        .value_or_throw();
  if (options.json)
    print_json(lineage_to_json(root));
  else
    std::fputs(draw_lineage(root).c_str(), stdout);
  return 0;
}

int path(const Options& options) {
  Store store = open_store();
  const Artifact artifact = store.resolve(options.ref).value_or_throw();
  const auto found = store.path_of(artifact, options.verify ? Store::Verify::kYes : Store::Verify::kNo);
  if (!found.ok()) {
    std::fprintf(stderr, "%s\n", found.error().to_string().c_str());
    return 1;
  }
  if (options.json)
    print_json({{"ref", artifact.ref()}, {"path", found.value()}});
  else
    std::printf("%s\n", found->c_str());
  return 0;
}

int alias(const Options& options) {
  Store store = open_store();
  if (options.remove) {
    store.remove_alias(options.ref.substr(0, options.ref.find_first_of(":@")), options.alias)
        .value_or_throw();
  } else {
    store.set_alias(options.ref, options.alias).value_or_throw();
  }
  const Artifact artifact = store.resolve(options.ref).value_or_throw();
  if (options.json)
    print_json(to_json(artifact));
  else
    std::printf("%s  %s\n", artifact.ref().c_str(), join(artifact.aliases).c_str());
  return 0;
}

int remove(const Options& options) {
  Store store = open_store();
  const Artifact artifact = store.resolve(options.ref).value_or_throw();
  store.remove_artifact(artifact.ref()).value_or_throw();
  if (options.json)
    print_json({{"removed", artifact.ref()}});
  else
    std::printf("%s removed; `flywheel store gc` frees its space\n", artifact.ref().c_str());
  return 0;
}

int gc(const Options& options) {
  Store store = open_store();
  const auto report =
      store.gc(options.dry_run ? Store::GcMode::kDryRun : Store::GcMode::kRemove).value_or_throw();
  if (options.json) {
    print_json({{"blobs_removed", report.blobs_removed},
                {"blobs_kept", report.blobs_kept},
                {"blobs_reserved", report.blobs_reserved},
                {"bytes_freed", report.bytes_freed},
                {"leftovers_removed", report.leftovers_removed}});
    return 0;
  }
  std::printf("%s %s blobs, %s; kept %s, reserved by writers %s; leftovers %s\n",
              options.dry_run ? "would remove" : "removed", human_count(report.blobs_removed).c_str(),
              human_bytes(static_cast<double>(report.bytes_freed)).c_str(),
              human_count(report.blobs_kept).c_str(), human_count(report.blobs_reserved).c_str(),
              human_count(report.leftovers_removed).c_str());
  return 0;
}

int verify(const Options& options) {
  Store store = open_store();
  ProgressBar bar("verify", 0, "bytes");  // from the beginning: its time is that of all the reading
  const auto report = store
                          .verify([&](uint64_t done, uint64_t all) {
                            bar.set_total(static_cast<int64_t>(all));
                            bar.update(static_cast<int64_t>(done));
                          })
                          .value_or_throw();
  bar.finish();
  if (options.json) {
    Json problems = Json::array();
    for (const auto& problem : report.problems) {
      problems.push_back(
          {{"what", problem.what}, {"sha256", problem.sha256}, {"artifacts", problem.artifacts}});
    }
    print_json({{"artifacts_checked", report.artifacts_checked},
                {"by_reference", report.by_reference},
                {"blobs_checked", report.blobs_checked},
                {"bytes_checked", report.bytes_checked},
                {"problems", problems}});
  } else {
    for (const auto& problem : report.problems) std::printf("%s\n", problem.what.c_str());
    const std::string by_reference =
        report.by_reference == 0 ? "" : fmt::format(", {} by reference, not read;", report.by_reference);
    std::printf(
        "%s artifacts%s %s blobs, %s read: %s\n",
        human_count(report.artifacts_checked + report.by_reference).c_str(),
        by_reference.empty() ? "," : by_reference.c_str(), human_count(report.blobs_checked).c_str(),
        human_bytes(static_cast<double>(report.bytes_checked)).c_str(),
        report.problems.empty() ? "all sound" : fmt::format("{} problems", report.problems.size()).c_str());
  }
  return report.problems.empty() ? 0 : 1;
}

int verb_store(const std::vector<std::string>& args) {
  App app{
      "List, trace, promote, collect and verify artifacts: every file by its SHA-256, every name with a "
      "version."};
  app.footer(
      "  flywheel store list --kind model\n"
      "  flywheel store show demo\n"
      "  flywheel store lineage demo            from raw files to the model\n"
      "  flywheel store alias demo:1 prod       demo@prod is version 1 from now on\n"
      "  flywheel store verify\n");
  Options options;
  Subcommands<Options> subcommands(app, options);
  const auto add_ref = [&](CLI::App* command) {
    command->add_option("artifact", options.ref, "NAME, NAME:VERSION or NAME@ALIAS")->required();
  };
  CLI::App* command = subcommands.add("list", "The artifacts", list,
                                      "  flywheel store list\n"
                                      "  flywheel store list --kind model\n"
                                      "  flywheel store list --name demo --removed --json\n");
  command->add_option("--kind", options.filter.kind,
                      "Only this kind: dataset, tokenizer, checkpoint, model, ...");
  command->add_option("--name", options.filter.name, "Only this name");
  command->add_flag("--removed", options.filter.removed, "Also those whose content was removed");
  add_ref(subcommands.add("show", "One artifact: its files, metadata and history of aliases", show,
                          "  flywheel store show demo\n"
                          "  flywheel store show demo:1 --json\n"));
  command =
      subcommands.add("lineage", "What it was made from, as a tree", lineage,
                      "  flywheel store lineage demo                  from raw files to the model\n"
                      "  flywheel store lineage debian-docs --down    what was made from the dataset\n");
  add_ref(command);
  command->add_flag("--down", options.downstream, "What was made from it, instead");
  command = subcommands.add("path", "The read-only file or folder that holds it", path,
                            "  flywheel store path demo\n"
                            "  ls $(flywheel store path demo --verify)\n");
  add_ref(command);
  command->add_flag("--verify", options.verify, "Read everything and compare hashes first");
  command =
      subcommands.add("alias", "Let NAME@ALIAS be this version", alias,
                      "  flywheel store alias demo:1 prod             demo@prod is version 1 from now on\n"
                      "  flywheel store alias demo prod --remove\n");
  add_ref(command);
  command->add_option("alias", options.alias, "prod, best, ...")->required();
  command->add_flag("--remove", options.remove, "Take the alias away");
  add_ref(subcommands.add("remove", "Give up its content; name and lineage stay", remove,
                          "  flywheel store remove demo:1 && flywheel store gc\n"));
  command = subcommands.add("gc", "Free the space of what nothing refers to; safe at any time", gc,
                            "  flywheel store gc --dry-run\n  flywheel store gc\n");
  command->add_flag("--dry-run", options.dry_run, "Only say what would go");
  subcommands.add("verify", "Read everything and compare it with its hash; exit 1 when something is wrong",
                  verify, "  flywheel store verify\n");
  if (auto exit = parse(app, "store", args)) return *exit;
  return subcommands.run();
}

REGISTER_VERB(store, "Artifacts: list, show, lineage, alias, path, remove, gc, verify", verb_store);

}  // namespace
}  // namespace flywheel::cli
