// tokenizer.json: a value or an error; what loaded encodes and decodes anything.
#include "fuzzer.h"
#include "tokenizer_use.h"

namespace {

std::vector<std::string> seeds() {
  return {
      R"({"added_tokens":[{"id":6,"content":"<|end|>","special":true}],"normalizer":{"type":"NFC"},
"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}| ?\\p{L}+"},"behavior":"Isolated"},
{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]},"decoder":{"type":"ByteLevel"},
"model":{"type":"BPE","vocab":{"H":0,"e":1,"l":2,"o":3,"He":4,"ll":5},"merges":["H e",["l","l"]]}})",
      R"({"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":5,"content":"Hel","lstrip":true,"rstrip":true,"normalized":true}],
"normalizer":{"type":"Sequence","normalizers":[{"type":"NFKC"},{"type":"BertNormalizer"},{"type":"Replace","pattern":{"Regex":"a|o"},"content":"ee"},{"type":"Strip"},{"type":"Prepend","prepend":"_"}]},
"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Metaspace","prepend_scheme":"first"},{"type":"Digits"},{"type":"Punctuation"},{"type":"Split","pattern":{"String":"l"},"behavior":"MergedWithNext"}]},
"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<unk>"}},{"Sequence":{"id":"A"}}],"special_tokens":{"<unk>":{"ids":[0]}}},
"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1}]},
"model":{"type":"Unigram","unk_id":0,"byte_fallback":true,"vocab":[["<unk>",0],["l",-2.5],["he",-1],["▁",-3],["o",-2]]}})",
      R"({"added_tokens":[{"id":3,"content":"[MASK]","single_word":true}],"normalizer":{"type":"BertNormalizer","lowercase":true},
"pre_tokenizer":{"type":"BertPreTokenizer"},"post_processor":{"type":"RobertaProcessing","sep":["</s>",2],"cls":["<s>",1]},"decoder":{"type":"WordPiece"},
"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"[UNK]":0,"<s>":1,"</s>":2,"hell":4,"##o":5}}})"};
}

void run(std::string_view input) {
  const auto tokenizer = flywheel::model::Tokenizer::from_json(input);
  if (tokenizer.ok()) use_tokenizer(*tokenizer, input);
}

const FuzzerRegistration registration("tokenizer_json", seeds, run);

}  // namespace
