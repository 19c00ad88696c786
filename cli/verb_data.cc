// flywheel data: raw files into a clean, deduplicated, tokenized dataset; what is in it; what was dropped and
// why.
#include <algorithm>
#include <cstdio>

#include "base/config_places.h"
#include "base/json.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "cli.h"
#include "data/document.h"
#include "data/prepare.h"
#include "data/prepare_chat.h"
#include "data/shards.h"
#include "model/tokenizer.h"
#include "store/store.h"
#include "subcommands.h"
#include "utf8.h"

namespace flywheel::cli {
namespace {

struct Options {
  std::vector<std::string> inputs, overrides;
  std::string output, config, name, model, split = "train";
  int64_t documents = 3, sample = -1, length = 256;
  uint64_t seed = 1;
  bool json = false, no_store = false, verify = false;
};

// A flag that stands for a key of the config, over file and --set; a mistake in it is blamed on the flag.
void take_flag(const std::string& given, std::string& value, const char* key, const char* flag,
               ConfigPlaces& places) {
  if (given.empty()) return;
  check_utf8(flag, given);
  value = given;
  places.set(key, flag);
}

int prepare(const Options& options) {
  data::PrepareRequest request;
  request.inputs = options.inputs;
  request.output = options.output;
  while (request.output.size() > 1 && request.output.ends_with('/')) request.output.pop_back();
  ConfigPlaces places;
  request.config = places.load<data::DataConfig>(options.config, options.overrides);
  take_flag(options.name, request.config.name, "name", "--name", places);
  std::unique_ptr<ProgressBar> bar;
  std::string stage;
  request.progress = [&](const std::string& name, int64_t done, int64_t total) {
    if (name != stage) {
      bar.reset();
      bar = std::make_unique<ProgressBar>(name, total);
      stage = name;
    }
    bar->set_total(total);  // a tokenizer may need fewer merges than were wanted
    bar->update(done);
  };
  std::optional<store::Store> store;
  if (!options.no_store) {
    store = store::Store::open().value_or_throw("--home");
    request.store = &*store;
  }
  const data::PrepareReport report =
      places.blame([&] { return data::prepare(request); }).value_or_throw(options.output);
  bar.reset();
  if (options.json) {
    std::printf("%s\n", data::to_json(report).dump().c_str());
  } else {
    std::printf("%s\n%s in %s; the documents are in %s/documents.jsonl, the tokens in %s/shards\n",
                data::to_text(report).c_str(), human_bytes(static_cast<double>(report.bytes)).c_str(),
                human_seconds(report.seconds).c_str(), request.output.c_str(), request.output.c_str());
  }
  return 0;
}

int chat(const Options& options) {
  data::ChatRequest request{.inputs = options.inputs, .output = options.output};
  while (request.output.size() > 1 && request.output.ends_with('/')) request.output.pop_back();
  ConfigPlaces places;
  request.config = places.load<data::ChatConfig>(options.config, options.overrides);
  take_flag(options.name, request.config.name, "name", "--name", places);
  take_flag(options.model, request.config.model, "model", "--model", places);
  ProgressBar bar("chat", 0);
  request.progress = [&](int64_t done, int64_t total) {
    bar.set_total(total);
    bar.update(done);
  };
  std::optional<store::Store> store;
  if (!options.no_store) {
    store = store::Store::open().value_or_throw("--home");
    request.store = &*store;
  }
  const data::PrepareReport report =
      places.blame([&] { return data::prepare_chat(request); }).value_or_throw(options.output);
  bar.finish();
  if (options.json) {
    std::printf("%s\n", data::to_json(report).dump().c_str());
  } else {
    std::printf("%s\nthe samples are in %s/shards, what was refused and why in %s/quarantined.jsonl\n",
                data::to_text(report).c_str(), request.output.c_str(), request.output.c_str());
  }
  return 0;
}

int report(const Options& options) {
  const data::PrepareReport report = data::read_report(options.output).value_or_throw();
  if (options.json) {
    std::printf("%s\n", data::to_json(report).dump().c_str());
  } else {
    std::printf("%s", data::to_text(report).c_str());
  }
  return 0;
}

// At most so many bytes of a text, cut at a space; without one near the end (many scripts have none), between
// two characters.
std::string beginning(const std::string& text, size_t bytes) {
  if (text.size() <= bytes) return text;
  const size_t space = text.find_last_of(" \n", bytes);
  if (space != std::string::npos && space > bytes / 2) return text.substr(0, space);
  while (bytes > 0 && (static_cast<unsigned char>(text[bytes]) & 0xC0) == 0x80) --bytes;  // inside one
  return text.substr(0, bytes);
}

// A few documents, cut to a readable length.
void print_documents(const std::string& output, int64_t count) {
  const Result<MappedFile> file = MappedFile::open(output + "/documents.jsonl");
  if (!file.ok()) return;
  std::string_view rest = file->bytes();
  for (int64_t i = 0; i < count && !rest.empty(); ++i) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const Result<data::Document> document = data::document_from_json(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (!document.ok()) continue;
    const std::string text = beginning(document->text, 300);
    std::printf("\n--- %s %s %s\n%s%s\n", document->id.c_str(), document->file.c_str(),
                document->place.c_str(), text.c_str(), document->text.size() > text.size() ? " ..." : "");
  }
}

int inspect(const Options& options) {
  const std::string folder = options.output + "/shards/" + options.split;
  const data::TokenShards shards =
      data::TokenShards::open(path_exists(options.output + "/manifest.json") ? options.output : folder)
          .value_or_throw();
  if (options.verify) shards.verify().value_or_throw();
  const data::ShardManifest& manifest = shards.manifest();
  OrderedJson json = {{"documents", manifest.documents},   {"tokens", manifest.tokens},
                      {"vocab_size", manifest.vocab_size}, {"token_bytes", manifest.token_bytes},
                      {"shards", manifest.shards.size()},  {"tokenizer_sha256", manifest.tokenizer_sha256},
                      {"verified", options.verify}};
  std::string text;
  if (options.sample >= 0) {
    const data::Sampler sampler(shards, {.seed = options.seed, .batch = 1, .length = options.length});
    const data::Batch batch = sampler.batch(options.sample).value_or_throw();
    const std::string file = options.output + "/tokenizer/tokenizer.json";
    const model::Tokenizer tokenizer = model::Tokenizer::load(file).value_or_throw(file);
    text = tokenizer.decode(batch.inputs(0));
    json["sample"] = {{"step", options.sample}, {"position", batch.samples[0]}, {"text", text}};
  }
  if (options.json) {
    std::printf("%s\n", json.dump().c_str());
    return 0;
  }
  std::printf("%s: %s documents, %s tokens of %d bytes, vocabulary %s, %zu shard%s%s\n",
              options.split.c_str(), human_count(manifest.documents).c_str(),
              human_count(manifest.tokens).c_str(), manifest.token_bytes,
              human_count(manifest.vocab_size).c_str(), manifest.shards.size(),
              manifest.shards.size() == 1 ? "" : "s", options.verify ? ", every checksum right" : "");
  if (options.sample >= 0) {
    std::printf("\nstep %lld (seed %llu):\n%s\n", static_cast<long long>(options.sample),
                static_cast<unsigned long long>(options.seed), text.c_str());
  } else {
    print_documents(options.output, options.documents);
  }
  return 0;
}

int verb_data(const std::vector<std::string>& args) {
  App app{"Make a dataset from raw files: extract, clean, deduplicate, tokenize, write shards."};
  app.footer(
      "  flywheel data prepare --input docs/ --output out/docs\n"
      "  flywheel data chat --input chat.jsonl --model smollm2 --output out/chat\n"
      "  flywheel data report out/docs\n"
      "  flywheel data inspect out/docs --verify\n");
  Options options;
  Subcommands<Options> subcommands(app, options);
  CLI::App* command = subcommands.add(
      "prepare", "Run the stages; what is done and unchanged is kept", prepare,
      "  flywheel data prepare --input docs/ --output out/docs\n"
      "  flywheel data prepare --input docs/ --output out/docs --set tokenizer.vocab_size=4096 --name docs\n"
      "  flywheel data prepare --input 'pages/*.html' crawl.jsonl --output out/web --config data.yaml\n");
  command->add_option("--input,-i", options.inputs, "Folders, files, patterns or s3:// addresses")
      ->required();
  command->add_option("--output,-o", options.output, "Folder for the dataset")->required();
  command->add_option("--config,-c", options.config, "YAML; every key is optional (docs/data.md)");
  command->add_option("--set", options.overrides, "One key of the config, e.g. dedup.near=false")
      ->allow_extra_args(false);
  command->add_option("--name", options.name, "The dataset's name in the store");
  command->add_flag("--no-store", options.no_store, "Record no run and no artifacts");

  command = subcommands.add(
      "chat", "Conversations as samples for fine-tuning, by a model's chat template", chat,
      "  flywheel data chat --input chat.jsonl --model smollm2 --output out/chat --name chat\n"
      "  flywheel data chat --input 'chats/*.jsonl' --model ./model/ --output out/chat "
      "--set shards.validation_fraction=0.05\n");
  command->add_option("--input,-i", options.inputs, "JSONL files, folders, patterns or s3:// addresses")
      ->required();
  command->add_option("--model,-m", options.model, "Whose tokenizer and chat template: as `chat` takes it");
  command->add_option("--output,-o", options.output, "Folder for the dataset")->required();
  command->add_option("--config,-c", options.config, "YAML; every key is optional (docs/finetune.md)");
  command->add_option("--set", options.overrides, "One key of the config, e.g. shards.seed=2")
      ->allow_extra_args(false);
  command->add_option("--name", options.name, "The dataset's name in the store");
  command->add_flag("--no-store", options.no_store, "Record no run and no artifacts");

  command = subcommands.add("report", "What was kept and dropped, by stage and rule", report,
                            "  flywheel data report out/docs\n");
  command->add_option("folder", options.output, "The output folder of prepare")->required();

  command = subcommands.add("inspect", "Look at documents, shards and samples", inspect,
                            "  flywheel data inspect out/docs --documents 1\n"
                            "  flywheel data inspect out/docs --verify\n"
                            "  flywheel data inspect out/docs --step 0 --length 64\n");
  command->add_option("folder", options.output, "The output folder of prepare, or a folder of shards")
      ->required();
  command->add_option("--split", options.split, "train or validation")
      ->check(CLI::IsMember({"train", "validation"}))
      ->capture_default_str();
  command->add_option("--documents", options.documents, "How many to show")
      ->check(at_least(0))
      ->capture_default_str();
  command->add_option("--step", options.sample, "Show the sample that training reads at this step")
      ->check(at_least(0));
  command->add_option("--length", options.length, "Tokens in a sample")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--seed", options.seed, "Of the order of samples")->capture_default_str();
  command->add_flag("--verify", options.verify, "Check every checksum");

  if (auto exit = parse(app, "data", args)) return *exit;
  return subcommands.run();
}

REGISTER_VERB(data, "Make a dataset: prepare, inspect, report", verb_data);

}  // namespace
}  // namespace flywheel::cli
