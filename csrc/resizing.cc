// What a resize adds up with which weights, and its call.
//
// Compiled once, without fused multiplications and additions (CMakeLists.txt): the weights are Pillow's to the last
// bit.
#include <math.h>

#include "arguments.h"
#include "instruction_sets.h"
#include "threads/scratch.h"

namespace {

constexpr double kPi = 3.14159265358979323846;

double bilinear(double x) {
  x = fabs(x);
  return x < 1 ? 1 - x : 0;
}

// Keys 1981, with a = -1/2.
double bicubic(double x) {
  constexpr double a = -0.5;
  x = fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

double sinc(double x) {
  if (x == 0) return 1;
  x *= kPi;
  return sin(x) / x;
}
double lanczos(double x) { return -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0; }

struct Filter {
  double (*value)(double);
  double support;
};
constexpr Filter kFilters[] = {{bilinear, 1}, {bicubic, 2}, {lanczos, 3}};

// The largest side: places in an image are exact as floats, and fit into 32 bits.
constexpr int64_t kLargestSide = int64_t{1} << 24;

bool is_valid(const GwResizing& r) {
  const auto is_side = [](int64_t size) { return 1 <= size && size <= kLargestSide; };
  if (!is_side(r.height) || !is_side(r.width) || !is_side(r.out_height) || !is_side(r.out_width)) return false;
  return r.channels >= 1 && r.channels <= 4 && r.row_bytes >= r.width * r.channels && r.row_bytes < kMost &&
         r.filter >= GW_BILINEAR && r.filter <= GW_LANCZOS && volume(r.height, r.row_bytes, 1, 1) >= 0;
}

// How the outputs of an axis lie over its inputs. Smaller images see all of what they stand for: the filter is as much
// wider.
struct Scaling {
  const Filter& filter;
  int64_t inputs, outputs;
  double scale = double(inputs) / double(outputs);
  double stretch = scale < 1 ? 1 : scale;
  double support = filter.support * stretch;

  double centre(int64_t o) const { return (double(o) + 0.5) * scale; }
  int64_t first(int64_t o) const { return int64_t(fmax(centre(o) - support + 0.5, 0)); }
  int64_t end(int64_t o) const { return int64_t(fmin(centre(o) + support + 0.5, double(inputs))); }
  int64_t most() const { return (int64_t(ceil(support)) * 2 + 1 + 3) / 4 * 4; }
};

// Scratch memory, handed out piece by piece.
class Pieces {
 public:
  explicit Pieces(void* memory) : next_(static_cast<char*>(memory)) {}
  template <typename Element>
  Element* take(int64_t count) {
    Element* piece = reinterpret_cast<Element*>(next_);
    next_ += bytes<Element>(count);
    return piece;
  }
  template <typename Element>
  static int64_t bytes(int64_t count) {
    return (count * int64_t(sizeof(Element)) + 63) / 64 * 64;
  }

 private:
  char* next_;
};

int64_t tap_bytes(const Scaling& s) {
  return Pieces::bytes<double>(s.most()) + 2 * Pieces::bytes<int32_t>(s.outputs) +
         2 * Pieces::bytes<int16_t>(s.outputs * s.most());
}

GwTaps make_taps(const Scaling& s, bool reversed, Pieces* pieces) {
  const int64_t most = s.most();
  double* weights = pieces->take<double>(most);
  int32_t* firsts = pieces->take<int32_t>(s.outputs);
  int32_t* counts = pieces->take<int32_t>(s.outputs);
  int16_t* high = pieces->take<int16_t>(s.outputs * most);
  int16_t* low = pieces->take<int16_t>(s.outputs * most);
  for (int64_t o = 0; o < s.outputs; ++o) {
    const int64_t first = s.first(o), count = s.end(o) - first, row = reversed ? s.outputs - 1 - o : o;
    double sum = 0;
    for (int64_t t = 0; t < count; ++t) {
      weights[t] = s.filter.value((double(t + first) - s.centre(o) + 0.5) * (1 / s.stretch));
      sum += weights[t];
    }
    firsts[row] = int32_t(first);
    counts[row] = int32_t(count);
    for (int64_t t = 0; t < most; ++t) {
      const double share = t < count ? (sum != 0 ? weights[t] / sum : weights[t]) : 0;
      const int32_t whole = int32_t(share * (1 << GwTaps::kWeightBits) + (share < 0 ? -0.5 : 0.5));
      high[row * most + t] = int16_t(whole >> GwTaps::kLowBits);
      low[row * most + t] = int16_t(whole & ((1 << GwTaps::kLowBits) - 1));
    }
  }
  return {s.outputs, most, firsts, counts, high, low};
}

GwStatus resize(const GwResizing& r, const uint8_t* in, uint8_t* out) {
  const Filter& filter = kFilters[r.filter];
  const Scaling horizontal{filter, r.width, r.out_width}, vertical{filter, r.height, r.out_height};
  const int64_t middle_bytes = Pieces::bytes<uint8_t>(r.out_width * r.channels + GwResizeJob::kSpare);
  const int64_t bytes = tap_bytes(horizontal) + tap_bytes(vertical) + r.height * middle_bytes;
  Scratch scratch;
  float* memory = scratch.take(size_t(bytes) / sizeof(float));
  if (!memory) return GW_OUT_OF_MEMORY;
  Pieces pieces(memory);
  GwResizeJob job{
      &r,          make_taps(horizontal, r.mirrored, &pieces), make_taps(vertical, false, &pieces), in, nullptr, out,
      middle_bytes};
  job.middle = pieces.take<uint8_t>(r.height * middle_bytes);
  gw_kernels().resize(job);
  return GW_OK;
}

}  // namespace

extern "C" int gw_resize(const GwResizing* sizes, const uint8_t* in, uint8_t* out) {
  if (!sizes || !in || !out || !is_valid(*sizes)) return GW_INVALID;
  const GwStatus status = resize(*sizes, in, out);
  gw_settle_scratch();
  return status;
}
