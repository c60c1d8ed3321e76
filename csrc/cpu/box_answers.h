// Boxes where answers have to have them: UniVG-R1's form and box, and the strict answer of each style.
#pragma once
#include <algorithm>
#include <vector>

#include "box_text.h"

namespace univg {

inline constexpr Text kThink = "<think>", kThought = "</think>", kAnswer = "<answer>", kAnswered = "</answer>";
inline constexpr Text kTags[] = {kThink, kThought, kAnswer, kAnswered};
inline constexpr Text kRef = "<|object_ref_start|>", kRefEnd = "<|object_ref_end|>";
inline constexpr Text kImageKeys[] = {"image", "image_id", "image_index", "image_idx", "img_idx", "img"};
enum Style { kUnivg, kJson, kTokens };

struct Box {
  double corners[4];
  int64_t image = -1;
  Text label{};  // without data: none
};
using Boxes = std::vector<Box>;

inline bool first_pair(Text t, double* box) {
  for (size_t at = find(t, "("); at != kNowhere; at = find(t, "(", at + 1)) {
    Reader r{t, at};
    if (r.pair(box)) return true;
  }
  return false;
}

// UniVG-R1: <think>.*?</think>\s*<answer>(d,d),(d,d)</answer>$, read from its end.
inline bool has_format(Text t, bool cot) {
  double box[4];
  if (!cot) return first_pair(t, box);
  if (t.ends_with('\n')) t.remove_suffix(1);
  if (!t.ends_with(kAnswered)) return false;
  t.remove_suffix(kAnswered.size());
  const size_t answer = t.rfind('<');
  if (answer == kNowhere || t.substr(answer, kAnswer.size()) != kAnswer) return false;
  Reader r{t, answer + kAnswer.size()};
  if (!r.pair(box) || !r.ended()) return false;
  t = t.substr(0, answer);
  while (!t.empty() && is_space(t.back())) t.remove_suffix(1);
  return t.ends_with(kThought) && find(t, kThink) != kNowhere;
}

struct Tags {
  size_t first[4];
  bool single[4];
  int64_t in_order = 0;

  explicit Tags(Text t) {
    size_t next = 0;
    for (int i = 0; i < 4; ++i) {
      first[i] = find(t, kTags[i]);
      single[i] = first[i] != kNowhere && find(t, kTags[i], first[i] + 1) == kNowhere;
      if (single[i] && first[i] >= next) next = first[i] + 1, ++in_order;
    }
  }
};

inline bool read_lines(Text body, Style style, Boxes* out) {
  Reader r{body};
  for (r.spaces(); !r.ended();) {
    Box box;
    if (r.is("Image-")) {
      if (!r.ordinal(&box.image)) return false;
      r.is(':'), r.spaces();
    }
    bool token = false;
    if (style == kTokens) {
      if (r.is(kRef)) {
        const size_t end = find(body, "<", r.at);
        if (end == kNowhere) return false;
        if (end > r.at) box.label = body.substr(r.at, end - r.at);
        r.at = end;
        if (!r.is(kRefEnd)) return false;
        r.spaces();
      }
      token = r.is("<|box_start|>");
    }
    if (!r.pair(box.corners) || (token && !r.is("<|box_end|>"))) return false;
    while (!r.ended() && (is_space(r.peek()) || r.peek() == ',' || r.peek() == ';')) ++r.at;
    out->push_back(box);
  }
  return true;
}

inline bool is_image_key(Text key) { return std::find(std::begin(kImageKeys), std::end(kImageKeys), key) != std::end(kImageKeys); }

// The whole of `t` as the number of an image, "image 2" or "2".
inline int64_t image_named(Text t) {
  int64_t image;
  Reader r{t};
  if (r.is("image") || r.is("Image"))
    if (!r.ended() && (r.peek() == ' ' || r.peek() == '-' || r.peek() == '_' || r.peek() == '#')) ++r.at;
  return r.ordinal(&image) && r.ended() ? image : -1;
}

inline bool is_scalar(Text t) {
  double value;
  Reader r{t};
  return t == "true" || t == "false" || t == "null" || (r.number(&value) && r.ended());
}

inline bool read_object(Reader& r, Box* box) {
  bool found = false;
  if (!r.is('{')) return false;
  r.spaces();
  for (;;) {
    Text key, text, array;
    if (!(r.is('"') && r.string(&key) && r.spaces() && r.is(':') && r.spaces())) return false;
    const size_t begin = r.at;
    const bool quoted = r.is('"'), listed = !quoted && r.is('[');
    if (quoted) {
      if (!r.string(&text)) return false;
    } else if (listed) {
      const size_t end = r.text.find_first_of("[]\"{}", r.at);
      if (end == kNowhere || r.text[end] != ']') return false;
      array = r.text.substr(r.at, end - r.at), r.at = end + 1;
    } else {
      while (!r.ended() && !is_space(r.peek()) && Text(",[]{}\"").find(r.peek()) == kNowhere) ++r.at;
      text = r.text.substr(begin, r.at - begin);
      if (!is_scalar(text)) return false;
    }
    if (key == "bbox_2d") {
      Reader in{array};
      in.spaces();
      found = listed && in.four(box->corners, [&](double* x) { return in.number(x); }, [&] { return in.loose_comma(); });
      if (!found || !(in.spaces() && in.ended())) return false;
    } else if (is_image_key(key)) {
      box->image = listed ? -1 : image_named(text);
    } else if (key == "label" && quoted) {
      box->label = text;
    }
    r.spaces();
    if (r.is('}')) return found;
    if (!r.is(',')) return false;
    r.spaces();
  }
}

inline bool read_objects(Text body, Boxes* out) {
  const Text fence = "```";
  if (body.starts_with(fence)) {
    if (body.ends_with(fence)) body.remove_suffix(3);
    for (Text opening : {Text("```json"), fence})
      if (body.starts_with(opening)) body.remove_prefix(opening.size());
    body = strip(body);
  }
  const bool many = body.starts_with('[');
  if (many) {
    if (!body.ends_with(']')) return false;
    body.remove_prefix(1);
    if (!body.empty()) body.remove_suffix(1);
    body = strip(body);
  }
  Reader r{body};
  for (;;) {
    Box box;
    if (!read_object(r, &box)) return false;
    out->push_back(box);
    r.spaces();
    if (r.ended()) return true;
    if (!many || !r.is(',')) return false;
    r.spaces();
  }
}

inline void read_strict(Text t, const Tags& tags, Style style, bool cot, Boxes* out) {
  if (cot || tags.first[2] != kNowhere || tags.first[3] != kNowhere) {
    if (!tags.single[2] || !tags.single[3] || tags.first[3] < tags.first[2]) return;
    const size_t begin = tags.first[2] + kAnswer.size();
    t = t.substr(begin, tags.first[3] - begin);
  }
  if (!(style == kJson ? read_objects(strip(t), out) : read_lines(t, style, out))) out->clear();
}

// Given that the answer itself is strict.
inline bool strict_form(Text t, const Tags& tags, bool cot) {
  const Text whole = strip(t);
  if (!cot)
    return tags.first[0] == kNowhere && tags.first[1] == kNowhere &&
           (tags.first[2] == kNowhere || (whole.starts_with(kAnswer) && whole.ends_with(kAnswered)));
  if (tags.in_order != 4 || !whole.starts_with(kThink) || !whole.ends_with(kAnswered)) return false;
  const size_t begin = tags.first[1] + kThought.size();
  return strip(t.substr(begin, tags.first[2] - begin)).empty();
}

inline void read_reward(Text t, bool cot, Boxes* out) {
  if (cot) {
    const size_t start = find(t, kAnswer);
    if (start == kNowhere) return;
    const size_t end = find(t, kAnswered, start + kAnswer.size());
    if (end == kNowhere) return;
    t = t.substr(start + kAnswer.size(), end - start - kAnswer.size());
  }
  Box box;
  if (first_pair(t, box.corners)) out->push_back(box);
}

}  // namespace univg
