#include <algorithm>
#include <array>
#include <string_view>

#include "data/html_hints_internal.h"

namespace flywheel::data {
namespace {

// Matched as a whole word of the class or id ("post-tags" has the words "post" and "tags").
constexpr std::string_view kAroundWords[] = {
    "ad",       "ads",        "adv",       "advert",     "adbox",     "aside",      "author",   "authors",
    "autor",    "badge",      "banner",    "buttons",    "byline",    "captcha",    "cart",     "categories",
    "catlinks", "cookie",     "copyright", "credit",     "credits",   "crumb",      "crumbs",   "dateline",
    "dialog",   "disclaimer", "disqus",    "feedback",   "fb",        "filed",      "flyout",   "foot",
    "footnav",  "fuss",       "jumplinks", "kommentare", "kontakt",   "lang",       "langs",    "legal",
    "lightbox", "likes",      "login",     "logo",       "menu",      "menue",      "meta",     "metadata",
    "metanav",  "modal",      "nav",       "navi",       "next",      "noprint",    "overlay",  "pager",
    "paging",   "pagenav",    "permalink", "popular",    "popup",     "posted",     "postinfo", "postmeta",
    "prev",     "previous",   "print",     "promo",      "rating",    "ratings",    "reply",    "replies",
    "respond",  "rss",        "search",    "share",      "sharebar",  "shares",     "shariff",  "shop",
    "sitemap",  "skip",       "social",    "sponsor",    "sponsored", "stats",      "subnav",   "submenu",
    "suche",    "tag",        "taglist",   "tags",       "tagcloud",  "teasers",    "thumbs",   "toc",
    "tools",    "toolbar",    "tooltip",   "topnav",     "trackback", "trackbacks", "tweet",    "utility",
    "vote",     "votes",      "werbung",   "widget",     "widgets",   "yarpp"};

// Matched anywhere in the class or id: long enough to mean only this.
constexpr std::string_view kAroundParts[] = {
    "abstand-werbung", "addthis",    "addtoany",   "advertis",    "archives",     "attachment",
    "authorbox",       "author-",    "backlink",   "bookmark",    "bottomnav",    "breadcrumb",
    "breadcrump",      "comment",    "consent",    "contact",     "cookie",       "copyright",
    "footer",          "fusszeile",  "headerlink", "invisible",   "jp-post-",     "kommentar",
    "marginal",        "masthead",   "mehr-zum",   "morelink",    "nav-",         "-nav",
    "navbar",          "navfoot",    "navhead",    "navig",       "newsletter",   "notloaded",
    "outbrain",        "pagination", "paging",     "post-info",   "post-nav",     "postmeta",
    "post-meta",       "entry-meta", "print-",     "publishdate", "read-more",    "readmore",
    "readlist",        "recommend",  "related",    "relevant",    "screenreader", "seitenleiste",
    "sharing",         "sharedaddy", "shoutbox",   "sidebar",     "signup",       "similar",
    "skip-",           "slidesh",    "social",     "sponsor",     "storynav",     "subscri",
    "syndicat",        "taboola",    "tagcloud",   "trackback",   "verwandt",     "viral",
    "weitere",         "widget",     "ya-share",   "zurueck"};

// Matched as the whole class or id.
constexpr std::string_view kContentNames[] = {"article",
                                              "articlebody",
                                              "article-body",
                                              "article__body",
                                              "article-content",
                                              "article_content",
                                              "articlecontent",
                                              "article-text",
                                              "articletext",
                                              "article_text",
                                              "article-main",
                                              "articlearea",
                                              "blog-content",
                                              "blog_content",
                                              "blogpost",
                                              "body-text",
                                              "bodytext",
                                              "body_text",
                                              "content-body",
                                              "content_body",
                                              "content-main",
                                              "entry",
                                              "entry-content",
                                              "entrycontent",
                                              "entry_content",
                                              "entrytext",
                                              "entry-body",
                                              "field-body",
                                              "field-name-body",
                                              "fulltext",
                                              "hentry",
                                              "instapaper_body",
                                              "main-content",
                                              "main_content",
                                              "maincontent",
                                              "news-text",
                                              "newstext",
                                              "page-content",
                                              "page_content",
                                              "pagecontent",
                                              "post",
                                              "post-body",
                                              "post-content",
                                              "post_content",
                                              "postcontent",
                                              "post-entry",
                                              "post-text",
                                              "post_text",
                                              "postarea",
                                              "single-content",
                                              "single-post",
                                              "singlepost",
                                              "story",
                                              "story-body",
                                              "story-content",
                                              "story_body",
                                              "storycontent",
                                              "text-content",
                                              "the-content",
                                              "the_content",
                                              "theme-content",
                                              "art-postcontent",
                                              "news-single-item",
                                              "body-content",
                                              "article__content",
                                              "td-post-content",
                                              "beitrag",
                                              "artikel",
                                              "artikeltext",
                                              "haupttext",
                                              "blog-post",
                                              "document",
                                              "rich-text",
                                              "richtext",
                                              "ce_text",
                                              "text",
                                              "itemfulltext",
                                              "csc-default"};

bool contains(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Hint of_name(std::string_view name) {
  if (contains(kContentNames, name)) return Hint::kContent;
  // What a page is filed under, as some systems write it on the article itself.
  if (name.starts_with("tag-") || name.starts_with("category-") || name.starts_with("type-"))
    return Hint::kNone;
  for (const std::string_view part : kAroundParts) {
    if (name.find(part) != std::string_view::npos) return Hint::kAround;
  }
  for (size_t at = 0; at < name.size();) {
    const size_t end = std::min(name.find_first_of("-_:./0123456789", at), name.size());
    if (end > at && contains(kAroundWords, name.substr(at, end - at))) return Hint::kAround;
    at = end + 1;
  }
  return Hint::kNone;
}

void append_lower(std::string& out, std::string_view text) {
  for (const char c : text.substr(0, 512)) out += static_cast<char>(c >= 'A' && c <= 'Z' ? c | 0x20 : c);
}

// The strongest word of a list of classes: around beats content ("post related" is related).
Hint of_classes(std::string_view classes) {
  Hint best = Hint::kNone;
  for (size_t at = 0; at < classes.size();) {
    const size_t end = std::min(classes.find_first_of(" \t\n\r\f", at), classes.size());
    if (end > at) best = std::max(best, of_name(classes.substr(at, end - at)));
    at = end + 1;
  }
  return best;
}

Hint of_tag(GumboTag tag) {
  switch (tag) {
    case GUMBO_TAG_SCRIPT:
    case GUMBO_TAG_STYLE:
    case GUMBO_TAG_NOSCRIPT:
    case GUMBO_TAG_TEMPLATE:
    case GUMBO_TAG_HEAD:
    case GUMBO_TAG_TITLE:
    case GUMBO_TAG_IFRAME:
    case GUMBO_TAG_EMBED:
    case GUMBO_TAG_OBJECT:
    case GUMBO_TAG_APPLET:
    case GUMBO_TAG_SVG:
    case GUMBO_TAG_CANVAS:
    case GUMBO_TAG_AUDIO:
    case GUMBO_TAG_VIDEO:
    case GUMBO_TAG_MAP:
    case GUMBO_TAG_BUTTON:
    case GUMBO_TAG_SELECT:
    case GUMBO_TAG_INPUT:
    case GUMBO_TAG_TEXTAREA:
    case GUMBO_TAG_DATALIST:
    case GUMBO_TAG_OPTION:
    case GUMBO_TAG_PROGRESS:
    case GUMBO_TAG_METER:
    case GUMBO_TAG_NOFRAMES:
    case GUMBO_TAG_NOEMBED:
    case GUMBO_TAG_RP:
    case GUMBO_TAG_ANNOTATION_XML:
      return Hint::kNever;
    case GUMBO_TAG_NAV:
    case GUMBO_TAG_FOOTER:
    case GUMBO_TAG_ASIDE:
    case GUMBO_TAG_MENU:
    case GUMBO_TAG_LABEL:
    case GUMBO_TAG_FIGCAPTION:
    case GUMBO_TAG_ADDRESS:
      return Hint::kAround;
    case GUMBO_TAG_MAIN:
      return Hint::kContent;
    default:
      return Hint::kNone;
  }
}

}  // namespace

bool is_block_element(GumboTag tag) {
  switch (tag) {
    case GUMBO_TAG_A:
    case GUMBO_TAG_EM:
    case GUMBO_TAG_STRONG:
    case GUMBO_TAG_SMALL:
    case GUMBO_TAG_S:
    case GUMBO_TAG_CITE:
    case GUMBO_TAG_Q:
    case GUMBO_TAG_DFN:
    case GUMBO_TAG_ABBR:
    case GUMBO_TAG_DATA:
    case GUMBO_TAG_TIME:
    case GUMBO_TAG_CODE:
    case GUMBO_TAG_VAR:
    case GUMBO_TAG_SAMP:
    case GUMBO_TAG_KBD:
    case GUMBO_TAG_SUB:
    case GUMBO_TAG_SUP:
    case GUMBO_TAG_I:
    case GUMBO_TAG_B:
    case GUMBO_TAG_U:
    case GUMBO_TAG_MARK:
    case GUMBO_TAG_RUBY:
    case GUMBO_TAG_RT:
    case GUMBO_TAG_RP:
    case GUMBO_TAG_RB:
    case GUMBO_TAG_BDI:
    case GUMBO_TAG_BDO:
    case GUMBO_TAG_SPAN:
    case GUMBO_TAG_BR:
    case GUMBO_TAG_WBR:
    case GUMBO_TAG_INS:
    case GUMBO_TAG_DEL:
    case GUMBO_TAG_IMG:
    case GUMBO_TAG_IMAGE:
    case GUMBO_TAG_FONT:
    case GUMBO_TAG_BIG:
    case GUMBO_TAG_TT:
    case GUMBO_TAG_STRIKE:
    case GUMBO_TAG_NOBR:
    case GUMBO_TAG_ACRONYM:
    case GUMBO_TAG_BLINK:
    case GUMBO_TAG_MATH:
    case GUMBO_TAG_MI:
    case GUMBO_TAG_MO:
    case GUMBO_TAG_MN:
    case GUMBO_TAG_MS:
    case GUMBO_TAG_MTEXT:
    case GUMBO_TAG_LABEL:
    case GUMBO_TAG_OUTPUT:
    case GUMBO_TAG_UNKNOWN:
    case GUMBO_TAG_LAST:
    case GUMBO_TAG_RTC:
    case GUMBO_TAG_BASEFONT:
    case GUMBO_TAG_SCRIPT:
    case GUMBO_TAG_STYLE:
      return false;
    default:
      return true;
  }
}

Hint Hints::of(const HtmlNode& node) {
  const Hint tag = of_tag(node.tag);
  if (tag == Hint::kNever || node.element == nullptr || node.element->attributes.length == 0) return tag;
  std::string_view classes, id, role;
  bool hidden = false, article_body = false;
  const GumboVector& attributes = node.element->attributes;
  for (unsigned i = 0; i < attributes.length; ++i) {
    const auto* attribute = static_cast<const GumboAttribute*>(attributes.data[i]);
    const std::string_view name = attribute->name, value = attribute->value;
    if (name == "class") {
      classes = value;
    } else if (name == "id") {
      id = value;
    } else if (name == "role") {
      role = value;
    } else if (name == "itemprop") {
      article_body = value == "articleBody";
    } else if (name == "hidden" || (name == "aria-hidden" && value == "true")) {
      hidden = true;
    } else if (name == "style") {
      hidden |= value.find("display:none") != std::string_view::npos ||
                value.find("display: none") != std::string_view::npos ||
                value.find("visibility:hidden") != std::string_view::npos;
    }
  }
  if (hidden) return Hint::kNever;
  if (article_body || role == "main") return Hint::kContent;
  if (role == "navigation" || role == "complementary" || role == "contentinfo" || role == "search" ||
      role == "banner" || role == "dialog" || role == "alert") {
    return Hint::kAround;
  }
  // What stands in a line of text (highlighted code, names) says nothing about the page.
  const bool inline_link = node.tag == GUMBO_TAG_A || node.tag == GUMBO_TAG_SPAN;
  if ((!is_block_element(node.tag) && !inline_link) || (classes.empty() && id.empty())) return tag;
  key_.clear();
  append_lower(key_, classes);
  key_ += ' ';
  append_lower(key_, id);
  auto [it, added] = known_.try_emplace(key_);
  if (added) it->second = of_classes(key_);
  if (inline_link && it->second == Hint::kContent) return tag;
  return std::max(tag, it->second);
}

}  // namespace flywheel::data
