// tiktoken's ranks: a value or an error; what loaded encodes and decodes anything.
#include "fuzzer.h"
#include "tokenizer_use.h"

namespace {

std::vector<std::string> seeds() {
  return {"SA== 0\nZQ== 1\nbA== 2\nSGU= 3\nbGw= 4\nIA== 5\n", "/w== 0\n4w== 1\ngQ== 2\n44E= 3\n"};
}

void run(std::string_view input) {
  for (const char* encoding : {"cl100k_base", "gpt2"}) {
    const auto tokenizer = flywheel::model::Tokenizer::from_tiktoken(input, encoding);
    if (tokenizer.ok()) use_tokenizer(*tokenizer, input);
  }
}

const FuzzerRegistration registration("tiktoken", seeds, run);

}  // namespace
