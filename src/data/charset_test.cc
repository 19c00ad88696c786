#include "data/charset.h"

#include <gtest/gtest.h>

#include "base/philox.h"
#include "data/unicode.h"

namespace flywheel::data {
namespace {

constexpr auto kHtml = DeclaredCharset::kHtml;

TEST(Charset, ByteOrderMarksAndValidUtf8) {
  EXPECT_EQ(decode_text("\xEF\xBB\xBFgrün", kHtml).utf8, "grün");
  const std::string utf16("\xFF\xFEg\0r\0\xFC\0n\0", 10);
  EXPECT_EQ(decode_text(utf16, kHtml).utf8, "grün");
  const std::string utf16be("\xFE\xFF\0g\0r\0\xFC\0n", 10);
  EXPECT_EQ(decode_text(utf16be, kHtml).utf8, "grün");
  EXPECT_EQ(decode_text("日本語", kHtml).charset, "utf-8");
  EXPECT_EQ(decode_text("", kHtml).utf8, "");
}

TEST(Charset, DeclaredInTheWaysThatPagesDo) {
  EXPECT_EQ(declared_charset("<html><meta charset=windows-1251>"), "windows-1251");
  EXPECT_EQ(declared_charset("<META CHARSET='Shift_JIS'>"), "shift_jis");
  EXPECT_EQ(declared_charset("<meta http-equiv=\"Content-Type\" content=\"text/html; charset=ISO-8859-2\">"),
            "iso-8859-2");
  EXPECT_EQ(declared_charset("<?xml version=\"1.0\" encoding=\"EUC-JP\"?>"), "euc-jp");
  EXPECT_EQ(declared_charset("<meta name=description content='no'>"), "");
  EXPECT_EQ(decode_text("<meta charset=windows-1251>\xCF\xF0\xE8\xE2\xE5\xF2", kHtml).utf8,
            "<meta charset=windows-1251>Привет");
  // ISO-8859-1 means Windows-1252 on the web: 0x93 is a quotation mark.
  EXPECT_EQ(decode_text("<meta charset=iso-8859-1>\x93grün\x94 \xFC", kHtml).utf8.substr(25, 3), "“");
  EXPECT_EQ(decode_text("<meta charset=gb2312>\xC4\xE3\xBA\xC3", kHtml).utf8, "<meta charset=gb2312>你好");
}

TEST(Charset, ADeclarationThatTheBytesContradictIsNotBelieved) {
  EXPECT_EQ(decode_text("<meta charset=iso-8859-1>grün", kHtml).utf8, "<meta charset=iso-8859-1>grün");
  const DecodedText latin = decode_text(
      "<meta charset=utf-8> gr\xFCn f\xFCr \xE4lt\xE4r \xF6"
      "del",
      kHtml);
  EXPECT_NE(latin.utf8.find("grün"), std::string::npos) << latin.charset;
  // One broken character among many good ones stays one broken character.
  const DecodedText broken = decode_text("<meta charset=utf-8> grün für äöü \xFF", kHtml);
  EXPECT_EQ(broken.charset, "utf-8");
  EXPECT_EQ(broken.replacements, 1);
  EXPECT_EQ(decode_text("<meta charset=no-such-set>gr\xFCn", kHtml).utf8, "<meta charset=no-such-set>grün");
}

TEST(Charset, GuessesByStatistics) {
  const std::string russian =
      "\xC2\xF1\xE5 \xF1\xF7\xE0\xF1\xF2\xEB\xE8\xE2\xFB\xE5 \xF1\xE5\xEC\xFC\xE8 \xEF\xEE\xF5\xEE\xE6\xE8 "
      "\xE4\xF0\xF3\xE3 \xED\xE0 \xE4\xF0\xF3\xE3\xE0, \xEA\xE0\xE6\xE4\xE0\xFF \xED\xE5\xF1\xF7\xE0\xF1\xF2"
      "\xEB\xE8\xE2\xE0\xFF \xF1\xE5\xEC\xFC\xFF \xED\xE5\xF1\xF7\xE0\xF1\xF2\xEB\xE8\xE2\xE0 \xEF\xEE-"
      "\xF1\xE2\xEE\xE5\xEC\xF3.";
  const DecodedText text = decode_text(russian, DeclaredCharset::kNone);
  EXPECT_EQ(text.charset, "windows-1251");
  EXPECT_EQ(text.utf8.substr(0, 6), "Все");
}

TEST(Charset, ValidPrefixKnowsEveryBadForm) {
  EXPECT_EQ(valid_utf8_prefix("a\xC0\x80"), 1u);          // overlong
  EXPECT_EQ(valid_utf8_prefix("a\xE0\x80\x80"), 1u);      // overlong
  EXPECT_EQ(valid_utf8_prefix("a\xED\xA0\x80"), 1u);      // surrogate
  EXPECT_EQ(valid_utf8_prefix("a\xF4\x90\x80\x80"), 1u);  // above U+10FFFF
  EXPECT_EQ(valid_utf8_prefix("a\xE2\x82"), 1u);          // cut
  EXPECT_EQ(valid_utf8_prefix("\xF0\x9F\x98\x80\xE2\x82\xAC\xC3\xBC"), 9u);
  for (char32_t c = 1; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_code_point(text, c);
    size_t i = 0;
    ASSERT_EQ(valid_utf8_prefix(text), text.size());
    ASSERT_EQ(next_code_point(text, i), c);
    ASSERT_EQ(i, text.size());
  }
}

TEST(Charset, AnyBytesBecomeValidUtf8) {
  Philox rng(42);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes(rng.below(300), '\0');
    for (char& c : bytes)
      c = static_cast<char>(rng.below(round % 3 == 0 ? 256 : 160) + (round % 3 == 2 ? 96 : 0));
    if (round % 5 == 0) {
      const char* const names[] = {"utf-8", "utf-16", "shift_jis", "iso-2022-jp", "gbk",
                                   "utf-7", "hz",     "big5",      "koi8-r"};
      bytes = std::string("<meta charset=") + names[rng.below(9)] + ">" + bytes;
    }
    const DecodedText text = decode_text(bytes, kHtml);
    ASSERT_EQ(valid_utf8_prefix(text.utf8), text.utf8.size()) << "round " << round << " as " << text.charset;
  }
}

}  // namespace
}  // namespace flywheel::data
