// Resizes drawn and compared with plain loops, which all instruction sets equal to the bit.
#pragma once
#include <algorithm>

#include "arrays.h"

namespace {

GwResizing draw_resizing() {
  GwResizing r{};
  const bool is_usual = draw(0, 2);
  r.channels = is_usual ? 3 : draw(1, 4);
  r.height = draw(1, is_usual ? 120 : 20);
  r.width = draw(1, is_usual ? 120 : 20);
  r.row_bytes = r.width * r.channels + (draw(0, 1) ? draw(0, 100) : 0);
  r.out_height = draw(1, 60);
  r.out_width = draw(1, 60);
  r.filter = draw(GW_BILINEAR, GW_LANCZOS);
  r.mirrored = draw(0, 1);
  return r;
}

double filter_value(int64_t filter, double x) {
  const double pi = acos(-1), d = fabs(x);
  if (filter == GW_BILINEAR) return std::max(0.0, 1 - d);
  if (filter == GW_LANCZOS) return d == 0 ? 1 : d >= 3 ? 0 : 3 * sin(pi * d) * sin(pi * d / 3) / (pi * pi * d * d);
  return d < 1 ? 1.5 * d * d * d - 2.5 * d * d + 1 : d < 2 ? -0.5 * d * d * d + 2.5 * d * d - 4 * d + 2 : 0;
}

// Weights of 22 bits behind the point, times bytes.
uint8_t to_byte(int64_t sum) { return uint8_t(std::min<int64_t>(255, std::max<int64_t>(0, (sum + (1 << 21)) >> 22))); }

// `outputs` bytes, made of `inputs` bytes that lie `distance` apart.
std::vector<uint8_t> resize_line(const uint8_t* line, int64_t inputs, int64_t outputs, int64_t distance,
                                 int64_t filter) {
  std::vector<uint8_t> results;
  const double scale = double(inputs) / double(outputs), stretch = std::max(scale, 1.0);
  for (int64_t o = 0; o < outputs; ++o) {
    const double centre = (double(o) + 0.5) * scale;
    std::vector<double> weights;
    double total = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      weights.push_back(filter_value(filter, (double(i) + 0.5 - centre) / stretch));
      total += weights.back();
    }
    int64_t sum = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      const double weight = weights[size_t(i)] / total * (1 << 22);
      sum += int64_t(weight < 0 ? weight - 0.5 : weight + 0.5) * line[i * distance];
    }
    results.push_back(to_byte(sum));
  }
  return results;
}

const char* find_resizing_mistake(const GwResizing& r) {
  const int64_t columns = r.out_width, c = r.channels;
  std::vector<uint8_t> in(size_t((r.height - 1) * r.row_bytes + r.width * c)), middle(size_t(r.height * columns * c));
  for (uint8_t& value : in) value = uint8_t(draw(0, 1) ? draw(0, 255) : draw(0, 1) * 255);
  for (int64_t y = 0; y < r.height; ++y) {
    for (int64_t channel = 0; channel < c; ++channel) {
      const uint8_t* row = in.data() + y * r.row_bytes + channel;
      const std::vector<uint8_t> line = resize_line(row, r.width, columns, c, r.filter);
      for (int64_t x = 0; x < columns; ++x) {
        const int64_t place = r.mirrored ? columns - 1 - x : x;
        middle[size_t((y * columns + place) * c + channel)] = line[size_t(x)];
      }
    }
  }
  std::vector<uint8_t> out(size_t(r.out_height * columns * c));
  if (gw_resize(&r, in.data(), out.data())) return "refused";
  for (int64_t at = 0; at < columns * c; ++at) {
    const std::vector<uint8_t> line = resize_line(middle.data() + at, r.height, r.out_height, columns * c, r.filter);
    for (int64_t y = 0; y < r.out_height; ++y) {
      if (out[size_t(y * columns * c + at)] != line[size_t(y)]) return "wrong";
    }
  }
  return nullptr;
}

int check(const GwResizing& r) {
  const char* mistake = find_resizing_mistake(r);
  if (!mistake) return 0;
  printf("%s: resize of %ldx%ldx%ld, rows of %ld, to %ldx%ld, filter %ld, mirrored %ld\n", mistake, long(r.height),
         long(r.width), long(r.channels), long(r.row_bytes), long(r.out_height), long(r.out_width), long(r.filter),
         long(r.mirrored));
  return 1;
}

}  // namespace
