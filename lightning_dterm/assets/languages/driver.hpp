#undef main
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>
// Calls one function with values read from standard input and prints what it returns. Expected values never come here.
namespace dterm_driver {
using std::string;

struct Json {
  enum Kind { Null, Bool, Int, Real, Text, List, Set, Map } kind = Null;
  long long whole = 0;
  double real = 0;
  string text;
  std::vector<Json> items;
};

struct Parser {
  const char *at;
  string word() {
    string out;
    for (++at; *at != '"'; ++at) {
      if (*at != '\\') { out += *at; continue; }
      switch (*++at) {
        case 'n': out += '\n'; break;
        case 't': out += '\t'; break;
        case 'r': out += '\r'; break;
        case 'b': out += '\b'; break;
        case 'f': out += '\f'; break;
        case 'u': {
          unsigned code = std::strtoul(string(at + 1, 4).c_str(), nullptr, 16);
          at += 4;
          if (code >= 0xD800 && code < 0xDC00 && at[1] == '\\' && at[2] == 'u') {
            code = 0x10000 + ((code - 0xD800) << 10) + (std::strtoul(string(at + 3, 4).c_str(), nullptr, 16) - 0xDC00);
            at += 6;
          }
          if (code < 0x80) out += char(code);
          else if (code < 0x800) { out += char(0xC0 | code >> 6); out += char(0x80 | (code & 63)); }
          else if (code < 0x10000) {
            out += char(0xE0 | code >> 12); out += char(0x80 | (code >> 6 & 63)); out += char(0x80 | (code & 63));
          } else {
            out += char(0xF0 | code >> 18); out += char(0x80 | (code >> 12 & 63));
            out += char(0x80 | (code >> 6 & 63)); out += char(0x80 | (code & 63));
          }
          break;
        }
        default: out += *at;
      }
    }
    ++at;
    return out;
  }
  Json value() {
    Json out;
    if (*at == '[') {
      out.kind = Json::List;
      for (++at; *at != ']';) { out.items.push_back(value()); if (*at == ',') ++at; }
      ++at;
    } else if (*at == '{') {
      ++at;
      string tag = word();
      ++at;
      out = value();
      ++at;
      if (tag == "int") { out.kind = Json::Int; out.whole = std::strtoll(out.text.c_str(), nullptr, 10); out.real = std::strtod(out.text.c_str(), nullptr); }
      else if (tag == "float") { out.kind = Json::Real; out.real = std::strtod(out.text.c_str(), nullptr); out.whole = (long long)out.real; }
      else out.kind = tag == "set" ? Json::Set : Json::Map;
    } else if (*at == '"') { out.kind = Json::Text; out.text = word(); }
    else if (*at == 'n') { at += 4; }
    else if (*at == 't') { out.kind = Json::Bool; out.whole = 1; at += 4; }
    else if (*at == 'f') { out.kind = Json::Bool; at += 5; }
    else {
      char *end;
      out.kind = Json::Int;
      out.whole = std::strtoll(at, &end, 10);
      out.real = double(out.whole);
      at = end;
    }
    return out;
  }
};

template <class T, class = void> struct Reader {
  static T read(const Json &j) {
    static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T>, "the driver cannot pass a value to this parameter type");
    if constexpr (std::is_floating_point_v<T>) return T(j.real);
    else if constexpr (std::is_same_v<T, char>) return j.kind == Json::Text ? (j.text.empty() ? 0 : j.text[0]) : char(j.whole);
    else return T(j.whole);
  }
};
template <> struct Reader<string> { static string read(const Json &j) { return j.text; } };
template <> struct Reader<const char *> { static const char *read(const Json &j) { return (new string(j.text))->c_str(); } };
template <> struct Reader<char *> { static char *read(const Json &j) { return &(*new string(j.text))[0]; } };
template <class A, class B> struct Reader<std::pair<A, B>> {
  static std::pair<A, B> read(const Json &j) {
    return {Reader<std::remove_const_t<A>>::read(j.items.at(0)), Reader<B>::read(j.items.at(1))};
  }
};
template <class... T> struct Reader<std::tuple<T...>> {
  template <size_t... I> static std::tuple<T...> all(const Json &j, std::index_sequence<I...>) {
    return std::tuple<T...>(Reader<T>::read(j.items.at(I))...);
  }
  static std::tuple<T...> read(const Json &j) { return all(j, std::index_sequence_for<T...>()); }
};
template <class T> struct Reader<std::optional<T>> {
  static std::optional<T> read(const Json &j) {
    if (j.kind == Json::Null) return std::nullopt;
    return Reader<T>::read(j);
  }
};
template <class T> struct Reader<T, std::void_t<typename T::value_type, decltype(std::declval<T &>().insert(
    std::declval<T &>().end(), std::declval<typename T::value_type>()))>> {
  static T read(const Json &j) {
    T out;
    for (const Json &item : j.items) out.insert(out.end(), Reader<typename T::value_type>::read(item));
    return out;
  }
};

struct Argument {
  const Json &json;
  template <class T> operator T &() const { return *new std::remove_const_t<T>(Reader<std::remove_const_t<T>>::read(json)); }
  template <class T, class = std::enable_if_t<!std::is_reference_v<T>>> operator T &&() const {
    return std::move(*new T(Reader<T>::read(json)));
  }
};

inline void show(string &out, bool v) { out += v ? "true" : "false"; }
inline void quote(string &out, const string &v) {
  out += '"';
  for (unsigned char c : v) {
    char code[8];
    if (c == '"' || c == '\\') { out += '\\'; out += char(c); }
    else if (c < 32) { std::snprintf(code, sizeof code, "\\u%04x", c); out += code; }
    else out += char(c);
  }
  out += '"';
}
inline void show(string &out, char v) { quote(out, string(1, v)); }
inline void show(string &out, const char *v) { if (v) quote(out, v); else out += "null"; }
inline void show(string &out, const string &v) { quote(out, v); }
template <class T> std::enable_if_t<std::is_integral_v<T>> show(string &out, T v) { out += "{\"int\":\"" + std::to_string(v) + "\"}"; }
template <class T> std::enable_if_t<std::is_floating_point_v<T>> show(string &out, T v) {
  char digits[64];
  if (std::isnan(v)) std::snprintf(digits, sizeof digits, "nan");
  else std::snprintf(digits, sizeof digits, "%.17g", double(v));
  out += string("{\"float\":\"") + digits + "\"}";
}
template <class A, class B> void show(string &out, const std::pair<A, B> &v);
template <class... T> void show(string &out, const std::tuple<T...> &v);
template <class T> void show(string &out, const std::optional<T> &v);
template <class T, class = typename T::value_type, class = decltype(std::declval<const T &>().begin())>
void show(string &out, const T &v);

template <class T, class = void> struct tag_of { static constexpr const char *value = nullptr; };
template <class T> struct tag_of<T, std::enable_if_t<std::is_same_v<typename T::key_type, typename T::value_type>>> {
  static constexpr const char *value = "set"; };
template <class T> struct tag_of<T, std::void_t<typename T::mapped_type>> { static constexpr const char *value = "map"; };

template <class A, class B> void show(string &out, const std::pair<A, B> &v) {
  out += '[';
  show(out, v.first);
  out += ',';
  show(out, v.second);
  out += ']';
}
template <class... T> void show(string &out, const std::tuple<T...> &v) {
  out += '[';
  std::apply([&](const auto &...item) { size_t i = 0; ((out += i++ ? "," : "", show(out, item)), ...); }, v);
  out += ']';
}
template <class T> void show(string &out, const std::optional<T> &v) { if (v) show(out, *v); else out += "null"; }
template <class T, class, class> void show(string &out, const T &v) {
  const char *tag = tag_of<T>::value;
  if (tag) out += string("{\"") + tag + "\":";
  out += '[';
  bool first = true;
  for (const auto &item : v) {
    if (!first) out += ',';
    first = false;
    show(out, static_cast<const typename T::value_type &>(item));
  }
  out += ']';
  if (tag) out += '}';
}

template <class F> string returned(F &&call) {
  string out;
  if constexpr (std::is_void_v<decltype(call())>) { call(); out = "null"; }
  else show(out, call());
  return out;
}
}  // namespace dterm_driver

int main() {
  using namespace dterm_driver;
  string input;
  char buffer[65536];
  for (size_t count; (count = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) input.append(buffer, count);
  std::vector<string> lines(1);
  for (char c : input) { if (c == '\n') lines.emplace_back(); else lines.back() += c; }
  for (size_t i = 1; i < lines.size(); ++i) {
    if (lines[i].empty()) continue;
    string said;
    try {
      Json arguments = Parser{lines[i].c_str()}.value();
      std::vector<Json> &a = arguments.items;
      (void)a;
      switch (a.size()) {
        DTERM_CALLS
        default: throw std::runtime_error("no call with this many arguments");
      }
    } catch (const std::exception &error) {
      said = string("!") + error.what();
      for (char &c : said) if (c == '\n') c = ' ';
    } catch (...) {
      said = "!unknown exception";
    }
    std::fprintf(stdout, "\n%s%s\n", lines[0].c_str(), said.c_str());
    std::fflush(stdout);
  }
  std::fflush(nullptr);
  std::_Exit(0);
}
