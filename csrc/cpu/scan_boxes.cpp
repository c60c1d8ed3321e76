// What completions answer, in one pass over each text that never goes back: every reader gives up at the first byte that
// does not fit, and the next one starts behind the place where it began. The modes are those of scan_boxes/reference.py.
#include <algorithm>
#include <vector>

#include "../common.h"
#include "box_text.h"

namespace univg {
namespace {

constexpr Text kThink = "<think>", kThought = "</think>", kAnswer = "<answer>", kAnswered = "</answer>";
constexpr Text kRef = "<|object_ref_start|>", kRefEnd = "<|object_ref_end|>";
constexpr Text kImageKeys[] = {"image", "image_id", "image_index", "image_idx", "img_idx", "img"};
enum Style { kUnivg, kJson, kTokens };
enum Mode { kReward, kStrict, kLenient, kEval, kMigician };

struct Box {
  double corners[4];
  int64_t image = -1;
  Text label{};  // without data: none
};
using Boxes = std::vector<Box>;

bool first_pair(Text t, double* box) {
  for (size_t at = find(t, "("); at != kNowhere; at = find(t, "(", at + 1)) {
    Reader r{t, at};
    if (r.pair(box)) return true;
  }
  return false;
}

// UniVG-R1: <think>.*?</think>\s*<answer>(d,d),(d,d)</answer>$, read from its end.
bool has_format(Text t, bool cot) {
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
    const Text names[] = {kThink, kThought, kAnswer, kAnswered};
    size_t next = 0;
    for (int i = 0; i < 4; ++i) {
      first[i] = find(t, names[i]);
      single[i] = first[i] != kNowhere && find(t, names[i], first[i] + 1) == kNowhere;
      if (single[i] && first[i] >= next) next = first[i] + 1, ++in_order;
    }
  }
};

bool read_lines(Text body, Style style, Boxes* out) {
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

bool is_image_key(Text key) { return std::find(std::begin(kImageKeys), std::end(kImageKeys), key) != std::end(kImageKeys); }

// The whole of `t` as the number of an image, "image 2" or "2".
int64_t image_named(Text t) {
  int64_t image;
  Reader r{t};
  if (r.is("image") || r.is("Image"))
    if (!r.ended() && (r.peek() == ' ' || r.peek() == '-' || r.peek() == '_' || r.peek() == '#')) ++r.at;
  return r.ordinal(&image) && r.ended() ? image : -1;
}

bool is_scalar(Text t) {
  double value;
  Reader r{t};
  return t == "true" || t == "false" || t == "null" || (r.number(&value) && r.ended());
}

bool read_object(Reader& r, Box* box) {
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

bool read_objects(Text body, Boxes* out) {
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

void read_strict(Text t, const Tags& tags, Style style, bool cot, Boxes* out) {
  if (cot || tags.first[2] != kNowhere || tags.first[3] != kNowhere) {
    if (!tags.single[2] || !tags.single[3] || tags.first[3] < tags.first[2]) return;
    const size_t begin = tags.first[2] + kAnswer.size();
    t = t.substr(begin, tags.first[3] - begin);
  }
  if (!(style == kJson ? read_objects(strip(t), out) : read_lines(t, style, out))) out->clear();
}

// Given that the answer itself is strict.
bool strict_form(Text t, const Tags& tags, bool cot) {
  const Text whole = strip(t);
  if (!cot)
    return tags.first[0] == kNowhere && tags.first[1] == kNowhere &&
           (tags.first[2] == kNowhere || (whole.starts_with(kAnswer) && whole.ends_with(kAnswered)));
  if (tags.in_order != 4 || !whole.starts_with(kThink) || !whole.ends_with(kAnswered)) return false;
  const size_t begin = tags.first[1] + kThought.size();
  return strip(t.substr(begin, tags.first[2] - begin)).empty();
}

void read_reward(Text t, bool cot, Boxes* out) {
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

// One box in any spelling: (x,y),(x,y) or (x,y,x,y), [x,y,x,y], <box>x y x y</box>.
bool read_any(Reader& r, double* box) {
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

// "image": 2 and "label": "name"; `at` stands on the first quote.
bool read_key(Reader& r, int64_t* image, Text* label) {
  const Reader begin = r;
  ++r.at;
  if (r.is("label\"")) return r.spaces() && r.is(':') && r.spaces() && r.is('"') && r.string(label);
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
constexpr Characters kCharacters;
bool may_mention(Text t, size_t at) {
  return kCharacters.starts[static_cast<unsigned char>(t[at])] &&
         (at == 0 || !kCharacters.word[static_cast<unsigned char>(t[at - 1])]);
}

void read_lenient(Text t, Boxes* out) {
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
  for (size_t at = 0; at < start; ++at)
    if (may_mention(t, at) && mention(t.substr(0, start), at, &image, &behind)) named = image, at = behind - 1;
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
      if (!r.is(kRef)) continue;
      const size_t from = r.at;
      r.at = std::min(find(t, "<", from), end);
      const Text name = t.substr(from, r.at - from);
      if (r.is(kRefEnd)) label = name.empty() ? Text() : name, at = r.at - 1;
    } else if (c == '"') {
      int64_t number = -2;
      Text name;
      if (!read_key(r, &number, &name)) continue;
      (number == -2 ? (void)(its_label = name) : (void)(its_image = number)), at = r.at - 1;
    } else if (c == '{') {
      opened = out->size(), its_image = -1, its_label = Text();
    } else if (c == '}' && opened != kNowhere) {
      for (size_t i = opened; i < out->size(); ++i) {
        if (its_image >= 0) (*out)[i].image = its_image;
        if (its_label.data()) (*out)[i].label = its_label;
      }
      opened = kNowhere;
    } else if (may_mention(t, at) && mention(t, at, &image, &behind)) {
      named = image, at = behind - 1;
    }
  }
}

// The patterns of the evaluation scripts, in their order; the first that is found anywhere decides.
void read_legacy(Text t, bool migician, Boxes* out) {
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

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// facts [B, 4]: UniVG-R1's form, the strict form, tags, boxes found; offsets [B+1]; boxes [M, 4]; images [M]; labels
// [M, 2]: where in `text` they begin and end, -1 for none. options [B]: style + 4·cot.
Result scan_boxes(const Tensor& text, const Tensor& offsets, const Tensor& options, int64_t mode, int64_t most) {
  const int64_t n = options.numel(), size = text.numel();
  UNIVG_CHECK(text.is_cpu() && text.scalar_type() == ScalarType::Byte && text.is_contiguous(),
              "text: expected contiguous bytes on the CPU");
  UNIVG_CHECK(mode >= kReward && mode <= kMigician && most >= 0, "scan_boxes: unknown mode ", mode);
  const int64_t *cu = data<int64_t>(offsets, n + 1, "offsets"), *option = data<int64_t>(options, n, "options");
  UNIVG_CHECK(cu[0] >= 0 && cu[n] <= size, "offsets: expected them within 0 and ", size);
  for (int64_t i = 0; i < n; ++i) {
    UNIVG_CHECK(cu[i] <= cu[i + 1], "offsets: expected them never to fall");
    UNIVG_CHECK((option[i] & ~7) == 0 && (option[i] & 3) <= kTokens, "options: unknown ", option[i]);
  }
  const char* bytes = static_cast<const char*>(text.data_ptr());
  Tensor facts = make<int64_t>(options, {n, 4}), ends = make<int64_t>(options, {n + 1});
  auto *fact = static_cast<int64_t*>(facts.data_ptr()), *end = static_cast<int64_t*>(ends.data_ptr());
  Boxes kept, found, answer;
  end[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Text t(bytes + cu[i], static_cast<size_t>(cu[i + 1] - cu[i]));
    const auto style = static_cast<Style>(option[i] & 3);
    const bool cot = option[i] & 4;
    const Tags tags(t);
    found.clear(), answer.clear();
    read_strict(t, tags, style, cot, &answer);
    if (mode == kStrict || (mode == kReward && style != kUnivg)) found.swap(answer);
    else if (mode == kReward) read_reward(t, cot, &found);
    else if (mode == kLenient) read_lenient(t, &found);
    else read_legacy(t, mode == kMigician, &found);
    const bool right = !(mode == kStrict || (mode == kReward && style != kUnivg) ? found : answer).empty();
    fact[4 * i] = has_format(t, cot), fact[4 * i + 1] = right && strict_form(t, tags, cot);
    fact[4 * i + 2] = tags.in_order, fact[4 * i + 3] = static_cast<int64_t>(found.size());
    kept.insert(kept.end(), found.begin(), found.begin() + std::min<int64_t>(most, found.size()));
    end[i + 1] = static_cast<int64_t>(kept.size());
  }
  const auto m = static_cast<int64_t>(kept.size());
  Tensor boxes = make<double>(options, {m, 4}), images = make<int64_t>(options, {m}),
         labels = make<int64_t>(options, {m, 2});
  auto* corner = static_cast<double*>(boxes.data_ptr());
  auto *image = static_cast<int64_t*>(images.data_ptr()), *label = static_cast<int64_t*>(labels.data_ptr());
  for (int64_t j = 0; j < m; ++j) {
    std::copy_n(kept[j].corners, 4, corner + 4 * j);
    image[j] = kept[j].image;
    const Text name = kept[j].label;
    label[2 * j] = name.data() ? name.data() - bytes : -1;
    label[2 * j + 1] = name.data() ? name.data() - bytes + static_cast<int64_t>(name.size()) : -1;
  }
  return {facts, ends, boxes, images, labels};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) { m.impl("scan_boxes", TORCH_BOX(&scan_boxes)); }

}  // namespace univg
