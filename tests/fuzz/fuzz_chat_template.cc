// Chat templates (Jinja): parsed and rendered within the limits, or an error.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "fuzzer.h"
#include "model/chat_template.h"

namespace {

std::vector<std::string> seeds() {
  return {
      "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m.content | trim }}{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
      "{%- macro f(x, y=1) -%}{{ x ~ y }}{%- endmacro -%}{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 "
      "%}"
      "{{ f(1, y=[2]) }}{% call f(3) %}x{% endcall %}{{ messages[0].content[::-1] }}",
      "{% filter upper %}a{% endfilter %}{{ messages | tojson(indent=2) }}{{ '%s %05.2f' % ('a', 1.5) }}"
      "{{ '{:>9}'.format('x') }}{{ [3,1]|sort|map('string')|join(',') }}{# c #}{{ raise_exception('no') }}",
      "{% for k, v in {'a': 1, 'b': 2}.items() if v > 1 %}{{ loop.index }}{% break %}{% else %}-{% endfor %}"
      "{{ 2 ** 10 // 3 % 7 if x is defined else 'a' in 'abc' and not false }}{{ strftime_now('%Y') }}"};
}

void run(std::string_view input) {
  using flywheel::OrderedJson;
  const auto chat = flywheel::model::ChatTemplate::parse(input);
  if (!chat.ok()) return;
  const OrderedJson messages = OrderedJson::parse(
      R"([{"role":"system","content":"be\nkind"},{"role":"user","content":[{"type":"text","text":"hi"}]},
          {"role":"assistant","content":null,"tool_calls":[{"id":"1","function":{"name":"f","arguments":{"a":1.5}}}]}])");
  flywheel::model::ChatOptions options;
  options.max_steps = 20'000;
  options.max_text_bytes = size_t{1} << 20;
  const auto text = chat->render(messages, options);
  CHECK(!text.ok() || text->size() <= options.max_text_bytes, "{} bytes", text->size());
}

const FuzzerRegistration registration("chat_template", seeds, run);

}  // namespace
