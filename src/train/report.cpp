#include "train/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

namespace tandem::train {
namespace {

using Curve = std::map<int, double>;  // by step

constexpr int width = 720, height = 240, left = 70, right = 20, top = 16, bottom = 36;

const char* const style = R"(
:root { color-scheme: light dark; --ink: #1c1d1f; --soft: #6b6f76; --line: #d9dce1; --page: #fff; --a: #1a6fd4; --b: #d4661a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9eb; --soft: #9a9fa8; --line: #3a3d43; --page: #17181a; --a: #6cb0ff; --b: #ffb072; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 760px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
table { border-collapse: collapse; } td { padding: .1rem 1.2rem .1rem 0; } td:first-child { color: var(--soft); }
svg { width: 100%; height: auto; font-size: 11px; } svg text { fill: var(--soft); } .grid { stroke: var(--line); }
.a, .b { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .a { stroke: var(--a); } .b { stroke: var(--b); }
.key-a { color: var(--a); } .key-b { color: var(--b); }
)";

std::string escaped(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    safe += c == '<'   ? "&lt;"
            : c == '>' ? "&gt;"
            : c == '&' ? "&amp;"
            : c == '"' ? "&quot;"
                       : std::string(1, c);
  }
  return safe;
}

Curve curve_of(const std::vector<nlohmann::json>& lines, const std::string& name) {
  Curve curve;
  for (const auto& line : lines) {
    const auto value = line.find(name), step = line.find("step");
    if (value != line.end() && value->is_number() && step != line.end() && step->is_number_integer())
      curve[step->get<int>()] = value->get<double>();
  }
  return curve;
}

// A number of few digits between grid lines so that about four fit.
double grid_step(double range) {
  const double rough = range / 4, magnitude = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * magnitude >= rough) return factor * magnitude;
  }
  return 10 * magnitude;
}

struct Axes {
  double first, last, low, high;  // steps; values

  double x(double step) const { return left + (width - left - right) * (step - first) / (last - first); }
  double y(double value) const {
    return height - bottom - (height - top - bottom) * (value - low) / (high - low);
  }
};

std::string grid(const Axes& axes) {
  std::string svg;
  const double by_value = grid_step(axes.high - axes.low);
  for (double v = std::ceil(axes.low / by_value) * by_value; v <= axes.high + by_value * 1e-6;
       v += by_value) {
    svg += fmt::format(R"(<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>)", left, width - right,
                       axes.y(v), axes.y(v));
    svg += fmt::format(R"(<text x="{}" y="{:.1f}" text-anchor="end">{:.4g}</text>)", left - 8, axes.y(v) + 4,
                       std::abs(v) < by_value * 1e-6 ? 0.0 : v);
  }
  const double by_step = std::max(1.0, grid_step(axes.last - axes.first));
  for (double s = std::ceil(axes.first / by_step) * by_step; s <= axes.last; s += by_step) {
    svg += fmt::format(R"(<text x="{:.1f}" y="{}" text-anchor="middle">{:.0f}</text>)", axes.x(s),
                       height - 16, s);
  }
  return svg + fmt::format(R"(<text x="{}" y="{}" text-anchor="end">step</text>)", width - right, height - 2);
}

std::string line(const Curve& curve, const Axes& axes, const char* kind) {
  std::string points;
  for (const auto& [step, value] : curve)
    points += fmt::format("{:.1f},{:.1f} ", axes.x(step), axes.y(value));
  if (curve.size() == 1)  // of which a line shows nothing
    return fmt::format(R"(<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2"/>)", kind,
                       axes.x(curve.begin()->first), axes.y(curve.begin()->second));
  return fmt::format(R"(<polyline class="{}" points="{}"/>)", kind, points);
}

// One chart of a curve, or of two on the same axes; nothing where they have no point.
std::string chart(const std::string& title, const Curve& a, const Curve& b = {}) {
  Axes axes{1e300, -1e300, 1e300, -1e300};
  for (const Curve* curve : {&a, &b}) {
    for (const auto& [step, value] : *curve) {
      axes = {std::min<double>(axes.first, step), std::max<double>(axes.last, step),
              std::min(axes.low, value), std::max(axes.high, value)};
    }
  }
  if (axes.first > axes.last) return {};
  if (axes.first == axes.last) ++axes.last;
  const double margin =
      axes.high > axes.low ? 0.05 * (axes.high - axes.low) : std::max(1e-9, 0.1 * std::abs(axes.high));
  axes.low -= margin;
  axes.high += margin;
  return fmt::format("<h2>{}</h2>\n<svg viewBox=\"0 0 {} {}\" role=\"img\">{}{}{}</svg>\n", title, width,
                     height, grid(axes), line(a, axes, "a"), line(b, axes, "b"));
}

}  // namespace

std::string html_report(const std::string& title,
                        const std::vector<std::pair<std::string, std::string>>& facts,
                        const std::vector<nlohmann::json>& lines) {
  std::string page = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width, "
      "initial-scale=1\">\n<title>{0}</title>\n<style>{1}</style></head><body>\n<h1>{0}</h1>\n"
      "<table>\n",
      escaped(title), style);
  for (const auto& [name, text] : facts)
    page += fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", escaped(name), escaped(text));
  const Curve train = curve_of(lines, "train_loss"), valid = curve_of(lines, "valid_loss");
  const auto last_of = [&](const char* name, const Curve& curve) {
    if (!curve.empty())
      page += fmt::format("<tr><td>{}</td><td>{:.4f}, after step {}</td></tr>\n", name,
                          curve.rbegin()->second, curve.rbegin()->first);
  };
  last_of("Loss of training", train);
  last_of("Loss of validation", valid);
  last_of("Loss of test", curve_of(lines, "test_loss"));
  page += "</table>\n";
  page += chart("Loss: <span class=\"key-a\">training</span>, <span class=\"key-b\">validation</span>", train,
                valid);
  page += chart("Learning rate", curve_of(lines, "learning_rate"));
  page += chart("Norm of the gradient", curve_of(lines, "gradient_norm"));
  page += chart("Tokens a second", curve_of(lines, "tokens_per_s"));
  Curve link = curve_of(lines, "link_share"), memory = curve_of(lines, "peak_bytes");
  for (auto& [step, share] : link) share *= 100;
  for (auto& [step, bytes] : memory) bytes /= 1e9;
  page += chart("Share of the time that the link takes, %", link);
  page += chart("Peak memory of rank 0, GB", memory);
  return page + "</body></html>\n";
}

}  // namespace tandem::train
