// Records of conversations: a sample whose mask is as long as its tokens, or a reason.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "data/chat_sample.h"
#include "fuzzer.h"
#include "model/bpe_trainer.h"

namespace {

std::vector<std::string> seeds() {
  return {
      R"({"messages":[{"role":"system","content":"be kind"},{"role":"user","content":"hi"},{"role":"assistant","content":"ho","weight":1}]})",
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":null,"weight":0},{"role":"assistant","content":"<|im_end|>"}],"tools":[{"type":"function","function":{"name":"f"}}]})",
      R"({"prompt":"2 + 2?","completion":[{"role":"assistant","content":"\n4 \u00e9"}]})"};
}

flywheel::data::ChatEncoder make_encoder() {
  using namespace flywheel;
  ThreadPool pool(1);
  model::BpeTrainer trainer({.vocab_size = 280, .special_tokens = {"<|im_start|>", "<|im_end|>"}});
  const std::vector<std::string> texts(3, "user assistant and the things that they say of the number");
  trainer.add(texts, pool);
  const Json config = {
      {"chat_template",
       "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
       "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"},
      {"eos_token", "<|im_end|>"}};
  model::OpenModel model{.name = "tiny"};
  model.tokenizer = std::make_shared<const model::Tokenizer>(
      model::Tokenizer::from_json(trainer.train().value(), config.dump()).value());
  model.end_tokens = model.tokenizer->end_tokens();
  return data::ChatEncoder::create(model).value();
}

void run(std::string_view input) {
  static const flywheel::data::ChatEncoder encoder = make_encoder();
  const auto sample = encoder.encode(input);
  if (!sample.ok()) return;
  CHECK(sample->counts.size() == sample->tokens.size(), "{} counts of {} tokens", sample->counts.size(),
        sample->tokens.size());
}

const FuzzerRegistration registration("chat_sample", seeds, run);

}  // namespace
