// The pieces that boxes are written with: each reader moves `at` behind what it has read and says whether it was there;
// where it was not, `at` may have moved. The rules are the regular expressions of scan_boxes/pieces.py, answers.py and search.py.
#pragma once
#include <cctype>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace univg {

using Text = std::string_view;
constexpr size_t kNowhere = Text::npos;

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1c' && c <= '\x1f'); }
constexpr bool is_word(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
inline char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

inline Text strip(Text t) {
  while (!t.empty() && is_space(t.front())) t.remove_prefix(1);
  while (!t.empty() && is_space(t.back())) t.remove_suffix(1);
  return t;
}

// memmem of the C library is fast, but not everywhere; memchr is.
inline size_t find(Text t, Text what, size_t from = 0) {
  while (from + what.size() <= t.size()) {
    const void* hit = std::memchr(t.data() + from, what[0], t.size() - from - what.size() + 1);
    if (!hit) return kNowhere;
    from = static_cast<size_t>(static_cast<const char*>(hit) - t.data());
    if (std::memcmp(t.data() + from, what.data(), what.size()) == 0) return from;
    ++from;
  }
  return kNowhere;
}

struct Reader {
  Text text;
  size_t at = 0;

  bool ended() const { return at >= text.size(); }
  char peek() const { return ended() ? '\0' : text[at]; }
  bool spaces() {
    while (!ended() && is_space(text[at])) ++at;
    return true;
  }
  bool some_space() { return !ended() && is_space(text[at]) && spaces(); }
  bool is(char c) { return !ended() && text[at] == c && ++at; }
  bool is(Text word) { return text.substr(at, word.size()) == word && (at += word.size(), true); }
  bool comma() { return is(',') && spaces(); }                // exactly before it nothing, as UniVG-R1 has it
  bool loose_comma() { return spaces() && is(',') && spaces(); }

  // More than nine digits are 10^9; of a fraction nine digits count.
  bool digits(double* value) {
    const size_t begin = at;
    int64_t all = 0;
    for (; !ended() && is_digit(text[at]); ++at)
      if (at - begin < 9) all = all * 10 + (text[at] - '0');
    *value = at - begin > 9 ? 1e9 : static_cast<double>(all);
    return at > begin;
  }
  bool fraction(double* value) {
    if (at + 1 >= text.size() || text[at] != '.' || !is_digit(text[at + 1])) return false;
    const size_t begin = ++at;
    int64_t all = 0, unit = 1;
    for (; !ended() && is_digit(text[at]); ++at)
      if (at - begin < 9) all = all * 10 + (text[at] - '0'), unit *= 10;
    *value += static_cast<double>(all) / static_cast<double>(unit);
    return true;
  }
  bool number(double* value) {
    const bool negative = is('-');
    if (!digits(value)) return false;
    fraction(value);
    if (negative) *value = -*value;
    return true;
  }
  bool decimal(double* value) { return digits(value) && fraction(value); }
  // One to three digits: a number of an image, from 0; -2 for "0", which there is not.
  bool ordinal(int64_t* image) {
    double value;
    const size_t begin = at;
    if (!digits(&value)) return false;
    if (at - begin > 3) at = begin + 3, value = (text[begin] - '0') * 100 + (text[begin + 1] - '0') * 10 + text[begin + 2] - '0';
    *image = value > 0 ? static_cast<int64_t>(value) - 1 : -2;
    return true;
  }
  // (d,d),(d,d): white space after a comma, and nowhere else.
  bool pair(double* box) {
    return is('(') && digits(box) && comma() && digits(box + 1) && is(')') && comma() && is('(') && digits(box + 2) &&
           comma() && digits(box + 3) && is(')');
  }
  // Four numbers of one kind with `gap` between them.
  template <class Number, class Gap>
  bool four(double* box, Number&& read, Gap&& gap) {
    return read(box) && gap() && read(box + 1) && gap() && read(box + 2) && gap() && read(box + 3);
  }
  // The rest of a string in quotes; `at` stands behind the first quote. `inside` is left as it is written.
  bool string(Text* inside) {
    const size_t begin = at;
    for (; !ended(); ++at) {
      if (text[at] == '"') return *inside = text.substr(begin, at - begin), ++at, true;
      if (text[at] == '\\' && ++at >= text.size()) return false;
    }
    return false;
  }
};

inline bool same_word(Text t, size_t at, Text word) {  // `word` is in lower case
  if (at + word.size() > t.size()) return false;
  for (size_t i = 0; i < word.size(); ++i)
    if (lower(t[at + i]) != word[i]) return false;
  return true;
}

inline size_t noun(Text t, size_t at) {  // its length, 0 for none
  for (Text word : {Text("image"), Text("picture"), Text("photo"), Text("frame")})
    if (same_word(t, at, word)) return word.size();
  return 0;
}

inline bool word_ends(Text t, size_t at) { return at >= t.size() || !is_word(t[at]); }

// "second image", "2nd image", "Image-2", where a word starts: the image, from 0, and where the words end.
inline bool mention(Text t, size_t at, int64_t* image, size_t* end) {
  constexpr Text kOrdinals[] = {"first", "second", "third",   "fourth", "fifth",
                                "sixth", "seventh", "eighth", "ninth",  "tenth"};
  const auto followed = [&](size_t from) {  // by " image"
    if (from >= t.size() || (t[from] != ' ' && t[from] != '-')) return false;
    const size_t length = noun(t, from + 1);
    *end = from + 1 + length;
    return length > 0 && word_ends(t, *end);
  };
  for (int64_t i = 0; i < 10; ++i)
    if (same_word(t, at, kOrdinals[i]) && followed(at + kOrdinals[i].size())) return *image = i, true;
  Reader r{t, at};
  if (is_digit(t[at])) {
    return r.ordinal(image) && (r.is("st") || r.is("nd") || r.is("rd") || r.is("th")) && followed(r.at);
  }
  r.at += noun(t, at);
  if (r.at == at) return false;
  if (!r.ended() && (r.peek() == ' ' || r.peek() == '-' || r.peek() == '_' || r.peek() == '#')) ++r.at;
  return r.ordinal(image) && word_ends(t, *end = r.at);
}

}  // namespace univg
