// The template language, feature by feature, against what Python's jinja2 prints for the same template
// (tests/chat_template compares whole templates with it at every run).
#include "model/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/philox.h"

namespace flywheel::model {
namespace {

using testing::HasSubstr;

std::string render(const std::string& source, const OrderedJson& variables = OrderedJson::object(),
                   const ChatOptions& options = {}) {
  const auto chat = ChatTemplate::parse(source);
  if (!chat.ok()) return "parse: " + chat.error().message;
  const auto text = chat->render_variables(variables, options);
  return text.ok() ? *text : "error: " + text.error().message;
}

TEST(ChatTemplate, WhiteSpaceAroundTags) {
  EXPECT_EQ(render("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
  EXPECT_EQ(render("a  {%- if true -%}  b  {%- endif -%}  c"), "abc");
  EXPECT_EQ(render("  {%+ if true %}x{% endif %}"), "  x");
  EXPECT_EQ(render("  {# note #}\nx {{- ' y ' -}} z"), "x y z");
  EXPECT_EQ(render("x\n {{ 'y' }}\n"), "x\n y");
  EXPECT_EQ(render("{% raw %}{{ no }}{% endraw %}"), "{{ no }}");
  EXPECT_EQ(render("a\r\nb\rc"), "a\nb\nc");
  EXPECT_EQ(render("{% set x = {'a': {'b': 1}} %}{{ x.a.b}}"), "1");
}

TEST(ChatTemplate, ExpressionsAsPythonHasThem) {
  EXPECT_EQ(render("{{ 7 // -2 }} {{ 7 % -3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ -3 | abs }}"),
            "-4 -2 3.5 1024 3");
  EXPECT_EQ(render("{{ (1 + 2 * 3) ~ 'x' ~ true ~ none }}"), "7xTrueNone");
  EXPECT_EQ(render("{{ 1 < 2 < 3 }} {{ 1 in [1] }} {{ 'b' not in 'abc' }} {{ not true }}"),
            "True True False False");
  EXPECT_EQ(render("{{ [1, 'a', 2.0, none, (1,), {'k': [true]}] }}"),
            "[1, 'a', 2.0, None, (1,), {'k': [True]}]");
  EXPECT_EQ(render("{{ 'it\\'s' ~ \"\\n\" }}{{ ['it\\'s', \"\\n\"] }}"), "it's\n[\"it's\", '\\n']");
  EXPECT_EQ(render("{{ '日本語'[1] }}{{ '日本語'[::-1] }}{{ [1, 2, 3, 4][1:-1] }}{{ 'abc'[5:] }}"),
            "本語本日[2, 3]");
  EXPECT_EQ(render("{{ 'a' if x else 'b' }}{{ 'c' if false }}", {{"x", 1}}), "a");
  EXPECT_EQ(render("{{ 1e20 }} {{ 0.0001 }} {{ 1e-05 }} {{ 1e16 }} {{ 123456789.0 }}"),
            "1e+20 0.0001 1e-05 1e+16 123456789.0");
  EXPECT_EQ(render("{{ 3e5550000 }} {{ -1e999 }} {{ 1e-400 }} {{ 1e999 | round }}"), "inf -inf 0.0 inf");
  EXPECT_EQ(render("{{ '%s is %d and %.2f' % ('x', 3, 1.5) }} {{ '{} {b:>4}'.format(1, b='z') }}"),
            "x is 3 and 1.50 1    z");
}

TEST(ChatTemplate, Statements) {
  EXPECT_EQ(render("{% for i in range(5) if i % 2 == 0 %}{{ loop.index }}:{{ i }}{{ ',' if not loop.last "
                   "}}{% endfor %}"),
            "1:0,2:2,3:4");
  EXPECT_EQ(render("{% for x in [] %}a{% else %}none{% endfor %}"), "none");
  EXPECT_EQ(render("{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", {{"d", {{"b", 1}, {"a", 2}}}}),
            "b=1;a=2;");
  EXPECT_EQ(render("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break "
                   "%}{% endif %}{{ i }}{% endfor %}"),
            "013");
  // A loop's variables are its own; a namespace is how a value leaves it.
  EXPECT_EQ(render("{% set x = 1 %}{% set ns = namespace(x=1) %}{% for i in [2, 3] %}{% set x = i %}{% set "
                   "ns.x = i %}{% endfor %}{{ x }}{{ ns.x }}"),
            "13");
  EXPECT_EQ(render("{% macro m(a, b='B') %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}{{ m(1) }} {{ "
                   "m(1, b=2) }} {% call m('x') %}in{% endcall %}"),
            "1B 12 xBin");
  EXPECT_EQ(render("{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}"),
            "3210");
  EXPECT_EQ(render("{% set t %} a {% endset %}[{{ t | trim }}]{% filter upper %}x{{ 'y' }}{% endfilter %}"),
            "[a]XY");
  EXPECT_EQ(
      render("{% generation %}g{% endgeneration %}{% with a = 1 %}{{ a }}{% endwith %}{{ a is defined }}"),
      "g1False");
}

TEST(ChatTemplate, FiltersTestsAndMethods) {
  EXPECT_EQ(render("{{ {'a': 'é<', 'b': [1, 2.0, none, true]} | tojson }}"),
            R"({"a": "é<", "b": [1, 2.0, null, true]})");
  EXPECT_EQ(render("{{ {'b': [1], 'a': {}} | tojson(indent=2, sort_keys=true) }}"),
            "{\n  \"a\": {},\n  \"b\": [\n    1\n  ]\n}");
  EXPECT_EQ(render("{{ ['x', 'é'] | tojson(ensure_ascii=true, separators=(',', ':')) }}"),
            R"(["x","\u00e9"])");
  EXPECT_EQ(render("{{ {'b': 1, 'A': 2} | dictsort }}{{ [3, 1, 2] | sort(reverse=true) }}"),
            "[('A', 2), ('b', 1)][3, 2, 1]");
  EXPECT_EQ(render("{{ m | selectattr('r', 'equalto', 1) | map(attribute='n') | join('+') }}",
                   {{"m", OrderedJson::parse(R"([{"r":1,"n":"a"},{"r":2,"n":"b"},{"r":1,"n":"c"}])")}}),
            "a+c");
  EXPECT_EQ(
      render("{{ 'a b c'.split() }}{{ 'a,b,c'.split(',', 1) }}{{ ' x '.strip() }}{{ 'xxa'.lstrip('x') }}"),
      "['a', 'b', 'c']['a', 'b,c']xa");
  EXPECT_EQ(render("{{ 'straße' | upper }} {{ 'they''re here' | title }} {{ 'ABC' | capitalize }}"),
            "STRASSE Theyre Here Abc");
  EXPECT_EQ(render("{{ x is defined }}{{ none is none }}{{ 1 is number }}{{ 'a' is string }}{{ {} is mapping "
                   "}}{{ [] is iterable }}{{ 3 is odd }}"),
            "FalseTrueTrueTrueTrueTrueTrue");
  EXPECT_EQ(
      render("{{ x | default('d') }}{{ '' | default('e', true) }}{{ '7' | int + 1 }}{{ 'z' | int(5) }}"),
      "de85");
  EXPECT_EQ(
      render(
          "{{ 'a\nb' | indent(2) }}{{ [1, 1, 2] | unique | list }}{{ '<a>' | e }}{{ '<' + ('>' | safe) }}"),
      "a\n  b[1, 2]&lt;a&gt;&lt;>");
  std::tm now{};
  now.tm_year = 126, now.tm_mon = 2, now.tm_mday = 9;
  EXPECT_EQ(render("{{ strftime_now('%d %B %Y') }}", OrderedJson::object(), {.now = now}), "09 March 2026");
}

TEST(ChatTemplate, RefusesInTheTemplatesWords) {
  EXPECT_EQ(render("a\n{{ raise_exception('Roles must alternate!') }}"),
            "error: chat template (line 2): Roles must alternate!");
  EXPECT_THAT(render("{{ x.y }}"), HasSubstr("'x' is undefined"));
  EXPECT_THAT(render("{{ m.y + 'a' }}", {{"m", {{"z", 1}}}}),
              HasSubstr("'dict object' has no attribute 'y'"));
  EXPECT_THAT(render("{{ 'a' + 1 }}"), HasSubstr("can only concatenate str (not \"int\") to str"));
  EXPECT_THAT(render("{{ [].append(1) }}"),
              HasSubstr("access to attribute 'append' of 'list' object is unsafe."));
  EXPECT_THAT(render("{{ ''.__class__.__mro__ }}"), HasSubstr("unsafe"));
  EXPECT_THAT(render("{{ 1 | nothing }}"), HasSubstr("No filter named 'nothing'."));
  EXPECT_THAT(render("{% if x %}"), HasSubstr("Unexpected end of template"));
  EXPECT_THAT(render("\n{% import 'os' %}"), HasSubstr("(line 2): Encountered unknown tag 'import'."));
  EXPECT_THAT(render("{% set ns = namespace(_x=1) %}"), HasSubstr("underscore"));
}

TEST(ChatTemplate, StopsAtLimits) {
  const auto stops = [](const std::string& source, const std::string& why) {
    ChatOptions options;
    options.max_steps = 200'000;
    options.max_text_bytes = 4 << 20;
    EXPECT_THAT(render(source, OrderedJson::object(), options), HasSubstr(why)) << source;
  };
  stops(
      "{% for a in range(999) %}{% for b in range(99) %}{% for c in range(99) %}{% endfor %}{% endfor %}{% "
      "endfor %}",
      "steps");
  stops("{% for a in range(99999999) %}{% endfor %}", "Range too big");
  stops("{{ 'x' * 999999999999 }}", "bytes of text");
  stops("{{ [0] * 999999999999 }}", "bytes of text");
  stops("{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "bytes of text");
  stops(
      "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ "
      "ns.x }}",
      "too large");
  stops("{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "nested deeper");
  stops("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested deeper");
  stops("{{ '%99999999d' % 1 }}", "format");
  stops("{{ 2 ** 99999999 }}", "64 bits");
  stops("{{ 'a'|indent(99999)|indent(99999) ~ ('a\n' * 5000)|indent(1000) }}", "bytes of text");
  EXPECT_THAT(render("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}"),
              HasSubstr("nested deeper"));
  EXPECT_THAT(render("{{ " + std::string(5000, '-') + "1 }}"), HasSubstr("nested deeper"));
  ChatOptions late;
  late.deadline = Deadline::after_ms(0);
  EXPECT_THAT(render("{% for a in range(9999) %}{% endfor %}", OrderedJson::object(), late),
              HasSubstr("too long"));
}

// Templates put together from pieces and cut, repeated and mixed at random: a result or an error, always
// soon.
TEST(ChatTemplate, SurvivesMutations) {
  const std::vector<std::string> pieces = {"{% for m in messages %}",
                                           "{% endfor %}",
                                           "{{ m.role }}",
                                           "{% if m['content'] is string %}",
                                           "{% else %}",
                                           "{% endif %}",
                                           "{% set ns = namespace(a=1) %}",
                                           "{% set ns.a = ns.a + 1 %}",
                                           "{% macro f(x, y=1) %}",
                                           "{% endmacro %}",
                                           "{{ f(1, y=[2]) }}",
                                           "{{ messages | tojson(indent=2) }}",
                                           "{{ messages[0].content[::-1] }}",
                                           "{%- ",
                                           " -%}",
                                           "{{-",
                                           "}}",
                                           "{#",
                                           "#}",
                                           "'",
                                           "\"",
                                           "|",
                                           ".",
                                           "(",
                                           ")",
                                           "[",
                                           "]",
                                           "{",
                                           "}",
                                           " not ",
                                           " in ",
                                           " is ",
                                           " and ",
                                           "loop.index",
                                           "x",
                                           "**",
                                           "//",
                                           "%",
                                           "~",
                                           "1",
                                           "9999999999",
                                           "1e9",
                                           "é",
                                           "{% break %}",
                                           "{{ 'a' * 9 }}",
                                           "{{ [1,2]|map('string')|join(',')|upper }}",
                                           "{{ '%s%d' % ('a', 1) }}",
                                           "{{ '{:>9}'.format(x) }}",
                                           "{% call f(1) %}",
                                           "{% endcall %}",
                                           "{% filter trim %}",
                                           "{% endfilter %}",
                                           "{% generation %}",
                                           "{% endgeneration %}",
                                           "\n",
                                           "  ",
                                           "\\",
                                           "\xFF"};
  const OrderedJson variables = {
      {"messages",
       OrderedJson::parse(R"([{"role":"user","content":"hi"},{"role":"assistant","content":null}])")}};
  Philox rng(20'260'309, 7);
  int rendered = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string source;
    for (uint64_t n = rng.below(24); n > 0; --n) source += pieces[rng.below(pieces.size())];
    if (rng.below(4) == 0 && !source.empty()) source.resize(rng.below(source.size()));
    ChatOptions options;
    options.max_steps = 20'000;
    options.max_text_bytes = 1 << 20;
    const std::string text = render(source, variables, options);
    rendered += !text.starts_with("parse: ") && !text.starts_with("error: ");
  }
  EXPECT_GT(rendered, 100);
}

}  // namespace
}  // namespace flywheel::model
