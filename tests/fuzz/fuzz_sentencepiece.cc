// SentencePiece models (protobuf): a value or an error; what loaded encodes and decodes anything.
#include "fuzzer.h"
#include "tokenizer_use.h"

namespace {

std::string field(int number, std::string_view bytes) {
  return std::string(1, static_cast<char>(number << 3 | 2)) + static_cast<char>(bytes.size()) +
         std::string(bytes);
}

std::vector<std::string> seeds() {
  std::string pieces;
  for (const char* piece : {"<unk>", "\xE2\x96\x81", "H", "e", "l", "He", "ll", "o", "\xE2\x96\x81He"}) {
    const bool unknown = std::string_view(piece) == "<unk>";
    pieces +=
        field(1, field(1, piece) + std::string("\x15\x00\x00\x80\xBF", 5) + (unknown ? "\x18\x02" : ""));
  }
  const std::string normalizer = field(3, field(1, "nmt_nfkc") + "\x18\x01\x20\x01\x28\x01");
  return {pieces + field(2, "\x18\x01"), pieces + field(2, "\x18\x02") + normalizer};
}

void run(std::string_view input) {
  const auto tokenizer = flywheel::model::Tokenizer::from_sentencepiece(input);
  if (tokenizer.ok()) use_tokenizer(*tokenizer, input);
}

const FuzzerRegistration registration("sentencepiece", seeds, run);

}  // namespace
