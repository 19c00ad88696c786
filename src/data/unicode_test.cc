#include "data/unicode.h"

#include <gtest/gtest.h>
#include <unicode/ucnv.h>

#include "base/philox.h"
#include "data/charset.h"

namespace flywheel::data {
namespace {

std::string clean(std::string_view text, UnicodeConfig config = {}) {
  UnicodeCounts counts;
  return clean_unicode(text, config, counts);
}

// Reads the bytes of UTF-8 as another encoding would.
std::string misread(std::string_view utf8, const char* table) {
  UErrorCode status = U_ZERO_ERROR;
  UConverter* converter = ucnv_open(table, &status);
  std::string out;
  for (const char c : utf8) {
    const char* at = &c;
    status = U_ZERO_ERROR;
    append_code_point(out, static_cast<char32_t>(ucnv_getNextUChar(converter, &at, &c + 1, &status)));
  }
  ucnv_close(converter);
  return out;
}

const char* const kTexts[] = {
    "It’s a café — “naïve” résumé… €5",
    "Füße, Größe, Übermut, Straße, ähnlich",
    "el niño habló así: ¿qué?",
    "Привет, как дела? Всё хорошо",
    "Ελληνικά και πάλι",
    "日本語のテキストです。",
    "한국어 문장",
    "naïve ☃ ✓ → ≤ 😀",
    "Łódź, Gdańsk, żółć",
};

TEST(Unicode, MojibakeOfEachKindIsUndone) {
  for (const std::string text : kTexts) {
    EXPECT_EQ(clean(misread(text, "latin-1")), text);
    EXPECT_EQ(clean(misread(text, "windows-1252")), text);
    EXPECT_EQ(clean(misread(misread(text, "latin-1"), "latin-1")), text) << "twice";
  }
  EXPECT_EQ(clean(misread("Привет, как дела", "windows-1251")), "Привет, как дела");
  EXPECT_EQ(clean(misread("It’s “so”", "macintosh")), "It’s “so”");
  EXPECT_EQ(clean("the caf\xC3\x83\xC2\xA9 is open"), "the café is open");
  UnicodeCounts counts;
  clean_unicode("caf\xC3\x83\xC2\xA9", {}, counts);
  EXPECT_EQ(counts.mojibake, 1);
  EXPECT_EQ(clean("caf\xC3\x83\xC2\xA9", {.repair_mojibake = false}), "cafÃ©");
}

TEST(Unicode, RealTextIsLeftAlone) {
  for (const std::string text : kTexts) EXPECT_EQ(clean(text), text);
  for (const std::string text : {"À « la » carte, É « »", "SÃO PAULO", "Å·B", "x ‚y‘ z", "IRMÃS", "Ð и Ñ",
                                 "Größe · Maß", "ÀÉÈÇÊ", "Île d’Orléans", "ÄÖÜß"}) {
    EXPECT_EQ(clean(text, {.plain_spaces = false}), text);
  }
}

TEST(Unicode, ControlsLinesAndSpaces) {
  EXPECT_EQ(clean("a\r\nb\rc\n\n\n\nd  \n  e"), "a\nb\nc\n\nd\n  e");
  EXPECT_EQ(clean(std::string("a\0b\x01"
                              "c\x7F",
                              6)),
            "abc");
  EXPECT_EQ(clean("so\u00ADft zero\u200Bwidth \uFEFFmark"), "soft zerowidth mark");
  EXPECT_EQ(clean("a\u00A0b\u2009c\u202Fd"), "a b c d");
  EXPECT_EQ(clean("\u202Eabc\u202C"), "abc");
  EXPECT_EQ(clean("line\u2028next\u2029para"), "line\nnext\npara");
  EXPECT_EQ(clean("it\u0092s \u0093so\u0094 \u0085"), "it’s “so” …");
  EXPECT_EQ(clean("👩\u200D🚀"), "👩\u200D🚀") << "joiners make one picture of several";
  EXPECT_EQ(clean("\n\n a\n\n"), " a");
}

TEST(Unicode, FormC) {
  EXPECT_EQ(clean("e\u0301 A\u030A \u1112\u1161\u11AB"), "é Å 한");
  EXPECT_EQ(clean("q\u0307\u0323"), "q\u0323\u0307") << "marks in their canonical order";
  EXPECT_EQ(clean("e\u0301", {.nfc = false}), "e\u0301");
}

TEST(Unicode, AnythingValidStaysValidAndASecondPassChangesNothing) {
  Philox rng(7);
  for (int round = 0; round < 4000; ++round) {
    std::string text;
    const uint64_t limit = round % 4 == 0   ? 0x110000
                           : round % 4 == 1 ? 0x100
                           : round % 4 == 2 ? 0x460
                                            : 0x2200;
    for (uint64_t i = rng.below(60); i-- > 0;) {
      auto c = static_cast<char32_t>(rng.below(limit));
      if (c >= 0xD800 && c <= 0xDFFF) c = '\n';
      append_code_point(text, c);
    }
    const std::string once = clean(text, {.repair_mojibake = round % 2 == 0});
    ASSERT_EQ(valid_utf8_prefix(once), once.size());
    ASSERT_EQ(clean(once, {.repair_mojibake = false}), once);
  }
}

}  // namespace
}  // namespace flywheel::data
