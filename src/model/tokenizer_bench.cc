// Tokenizer speed: model_tokenizer_bench TOKENIZER FILE...
// Prints one JSON line: megabytes a second for one thread and for all, and the limit: one pass that decodes
// the text and looks up each character's class, which no splitter can do without.
#include <cstdio>

#include "base/deadline.h"
#include "base/file.h"
#include "base/thread_pool.h"
#include "model/tokenizer.h"
#include "model/unicode.h"

using namespace flywheel;
using namespace flywheel::model;

namespace {

constexpr size_t kDocumentBytes = 16'384;
constexpr int kPasses = 5;

// Documents of about the same size, cut at line ends.
std::vector<std::string> documents(const std::string& text) {
  std::vector<std::string> out;
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(text.size(), at + kDocumentBytes);
    end = std::min(text.find('\n', end), text.size() - 1) + 1;
    out.push_back(text.substr(at, end - at));
    at = end;
  }
  return out;
}

// The best of a few passes, in MB/s.
template <typename Body>
double speed(size_t bytes, Body&& body) {
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const Stopwatch clock;
    body();
    best = std::max(best, static_cast<double>(bytes) / clock.seconds() / 1e6);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s TOKENIZER FILE...\n", argv[0]);
    return 2;
  }
  const Stopwatch clock;
  const Tokenizer tokenizer = Tokenizer::load(argv[1]).value_or_throw();
  const double load_seconds = clock.seconds();
  std::vector<std::string> texts;
  size_t bytes = 0;
  for (int i = 2; i < argc; ++i) {
    for (std::string& text : documents(read_file(argv[i]).value_or_throw(argv[i]))) {
      bytes += text.size();
      texts.push_back(std::move(text));
    }
  }
  size_t tokens = 0;
  const double one = speed(bytes, [&] {
    tokens = 0;
    for (const std::string& text : texts) tokens += tokenizer.encode(text).size();
  });
  std::vector<std::vector<TokenId>> ids(texts.size());
  const double all = speed(bytes, [&] {
    compute_pool().parallel_for(static_cast<int64_t>(texts.size()), 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        ids[static_cast<size_t>(i)] = tokenizer.encode(texts[static_cast<size_t>(i)]);
      }
    });
  });
  const double decode = speed(bytes, [&] {
    for (const auto& list : ids) tokens += tokenizer.decode(list).size() == SIZE_MAX;
  });
  size_t letters = 0;
  const double limit = speed(bytes, [&] {
    for (const std::string& text : texts) {
      for (size_t at = 0; at < text.size();) {
        const CodePoint c = decode_utf8(text, at);
        letters += has_class(c.value, kLetter);
        at += c.size_bytes;
      }
    }
  });
  CHECK(letters > 0, "a text without letters");
  std::printf(
      "{\"mb_s\": %.2f, \"mb_s_all_threads\": %.2f, \"decode_mb_s\": %.2f, \"limit_mb_s\": %.1f, "
      "\"load_s\": %.3f, \"tokens\": %zu, \"bytes\": %zu}\n",
      one, all, decode, limit, load_seconds, tokens, bytes);
  return 0;
}
