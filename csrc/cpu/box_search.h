// Boxes wherever they stand: the lenient reader, and those of the two evaluation scripts.
#pragma once
#include "box_answers.h"

namespace univg {

// One box in any spelling: (x,y),(x,y) or (x,y,x,y), [x,y,x,y], <box>x y x y</box>.
inline bool read_any(Reader& r, double* box) {
  const auto read = [&](double* x) { return r.number(x); };
  const auto comma = [&] { return r.loose_comma(); };
  if (r.is('[')) return r.spaces() && r.four(box, read, comma) && r.spaces() && r.is(']');
  if (r.is('(')) {
    if (!(r.spaces() && r.number(box) && comma() && r.number(box + 1) && r.spaces())) return false;
    if (r.is(')')) {
      r.spaces(), r.is(','), r.spaces();
      if (!r.is('(')) return false;
    } else if (!r.is(',')) {
      return false;
    }
    return r.spaces() && r.number(box + 2) && comma() && r.number(box + 3) && r.spaces() && r.is(')');
  }
  const auto gap = [&] {
    const size_t begin = r.at;
    while (!r.ended() && (is_space(r.peek()) || r.peek() == ',')) ++r.at;
    return r.at > begin;
  };
  return r.is("<box>") && r.spaces() && r.four(box, read, gap) && r.spaces() && r.is("</box>");
}

inline bool has_tag(Text t) {
  return std::any_of(std::begin(kTags), std::end(kTags), [&](Text tag) { return find(t, tag) != kNowhere; });
}

// "image": 2 and "label": "name", which reaches over no tag; `at` stands on the first quote.
inline bool read_key(Reader& r, int64_t* image, Text* label) {
  const Reader begin = r;
  ++r.at;
  if (r.is("label\"")) return r.spaces() && r.is(':') && r.spaces() && r.is('"') && r.string(label) && !has_tag(*label);
  for (Text key : kImageKeys) {
    r = begin;
    ++r.at;
    if (!(r.is(key) && r.is('"'))) continue;
    if (!(r.spaces() && r.is(':') && r.spaces())) return false;
    r.is('"');
    if (r.is("image") || r.is("Image"))
      if (!r.ended() && (r.peek() == ' ' || r.peek() == '-' || r.peek() == '_' || r.peek() == '#')) ++r.at;
    return r.ordinal(image) && (r.ended() || !is_digit(r.peek()));
  }
  return false;
}

struct Characters {
  bool word[256] = {}, starts[256] = {};  // of words, and those that a mention may begin with
  constexpr Characters() {
    for (int c = 0; c < 128; ++c) word[c] = is_word(static_cast<char>(c));
    for (char c : Text("0123456789ipfstenIPFSTEN")) starts[static_cast<unsigned char>(c)] = true;
  }
};
inline constexpr Characters kCharacters;
inline bool may_mention(Text t, size_t at) {
  return kCharacters.starts[static_cast<unsigned char>(t[at])] &&
         (at == 0 || !kCharacters.word[static_cast<unsigned char>(t[at - 1])]);
}

inline void read_lenient(Text t, Boxes* out) {
  size_t start = t.rfind(kAnswer), end = t.size(), behind;
  if (start != kNowhere) {
    start += kAnswer.size();
    const size_t closed = find(t, kAnswered, start);
    if (closed != kNowhere) end = closed;
  } else {
    const size_t thought = t.rfind(kThought);
    start = thought == kNowhere ? 0 : thought + kThought.size();
  }
  int64_t named = -1, image = -1;
  t = t.substr(0, end);
  Text label, its_label;
  int64_t its_image = -1;
  size_t opened = kNowhere;
  for (size_t at = start; at < end; ++at) {
    const char c = t[at];
    Reader r{t, at};
    Box box;
    if ((c == '(' || c == '[' || c == '<') && read_any(r, box.corners)) {
      box.image = named, box.label = label, out->push_back(box), at = r.at - 1;
    } else if (c == '<') {
      r.at = at;
      if (r.is(kThought)) named = -1;  // what was said before the answer begins
      if (!r.is(kRef)) continue;
      const size_t from = r.at;
      r.at = std::min(find(t, "<", from), end);
      const Text name = t.substr(from, r.at - from);
      if (r.is(kRefEnd)) label = name.empty() ? Text() : name, at = r.at - 1;
    } else if (c == '"') {
      int64_t number = -1;
      Text name;
      if (!read_key(r, &number, &name)) continue;
      (number == -1 ? (void)(its_label = name) : (void)(its_image = number)), at = r.at - 1;
    } else if (c == '{') {
      opened = out->size(), its_image = -1, its_label = Text();
    } else if (c == '}' && opened != kNowhere) {
      for (size_t i = opened; i < out->size(); ++i) {
        if (its_image != -1) (*out)[i].image = its_image;
        if (its_label.data()) (*out)[i].label = its_label;
      }
      opened = kNowhere;
    } else if (may_mention(t, at) && mention(t, at, &image, &behind)) {
      named = image, at = behind - 1;
    }
  }
}

// The patterns of the evaluation scripts, in their order; the first that is found anywhere decides.
inline void read_legacy(Text t, bool migician, Boxes* out) {
  const auto search = [&](Text begin, auto&& read) {  // `read` goes on behind `begin`
    for (size_t at = find(t, begin); at != kNowhere; at = find(t, begin, at + 1)) {
      Reader r{t, at + begin.size()};
      Box box;
      if (!read(r, box.corners)) continue;
      if (migician)
        for (double& x : box.corners) x = x >= 1 ? x : x * 1000;
      out->push_back(box);
      return true;
    }
    return false;
  };
  const auto list = [](bool decimals, char close) {
    return [=](Reader& r, double* box) {
      return r.four(box, [&](double* x) { return decimals ? r.decimal(x) : r.digits(x); }, [&] { return r.comma(); }) &&
             r.is(close);
    };
  };
  if (search("(", [](Reader& r, double* box) { return --r.at, r.pair(box); })) return;
  const bool fraction = search("[", list(true, ']')) || search("(", [](Reader& r, double* box) {
    return r.decimal(box) && r.is(',') && r.decimal(box + 1) && r.is("),(") && r.decimal(box + 2) && r.is(',') &&
           r.decimal(box + 3) && r.is(')');
  }) || search("(", list(true, ')'));
  if (fraction) {
    if (!migician) out->clear();  // int() refuses them, and the script goes on with zeros
    return;
  }
  if (search("[", list(false, ']'))) return;
  search("<box>", [](Reader& r, double* box) {
    return r.four(box, [&](double* x) { return r.digits(x); }, [&] { return r.some_space(); }) && r.is("</box>");
  });
}

}  // namespace univg
