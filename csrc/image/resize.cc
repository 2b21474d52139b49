// Resizing images of bytes: first along their rows, then along their columns, rounded to bytes in between, as Pillow
// does it. Integers alone, so that every instruction set gives the same bits.
//
// A weight's two halves have 16 bits each: one instruction multiplies bytes by them and adds pairs of products. Sums
// wrap in 32 bits and end in their range.
#include "kernels.h"
#include "simd.h"

namespace {

constexpr int kWeightBits = GwTaps::kWeightBits, kLowBits = GwTaps::kLowBits;
constexpr int32_t kHalf = 1 << (kWeightBits - 1);

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline uint32_t weight(const GwTaps& taps, int64_t at) {
  return (uint32_t(taps.high[at]) << kLowBits) + uint32_t(taps.low[at]);
}

inline uint8_t rounded(uint32_t sum) {
  const int32_t value = int32_t(sum + kHalf) >> kWeightBits;
  return uint8_t(value < 0 ? 0 : value > 255 ? 255 : value);
}

void resize_row(const GwResizeJob& job, const uint8_t* row, uint8_t* out) {
  const GwTaps& taps = job.horizontal;
  const int64_t channels = job.sizes->channels;
  for (int64_t o = 0; o < taps.outputs; ++o) {
    const uint8_t* from = row + taps.firsts[o] * channels;
    for (int64_t c = 0; c < channels; ++c) {
      uint32_t sum = 0;
      for (int64_t t = 0; t < taps.counts[o]; ++t) sum += weight(taps, o * taps.taps + t) * from[t * channels + c];
      out[o * channels + c] = rounded(sum);
    }
  }
}

#if defined(__AVX2__)

constexpr int kRows = 4;  // that share what is read of the weights

// Two rows' sums, of which the halves of each are still to be added: a row's pixel in each half.
GW_INLINE __m256i pixels_of(const __m256i* high, const __m256i* low) {
  __m256i sums[2];
#pragma GCC unroll 2
  for (int r = 0; r < 2; ++r) sums[r] = _mm256_add_epi32(_mm256_slli_epi32(high[r], kLowBits), low[r]);
  const __m256i total = _mm256_add_epi32(_mm256_permute2x128_si256(sums[0], sums[1], 0x20),
                                         _mm256_permute2x128_si256(sums[0], sums[1], 0x31));
  return _mm256_srai_epi32(_mm256_add_epi32(total, _mm256_set1_epi32(kHalf)), kWeightBits);
}

GW_INLINE void store_pixel(uint8_t* p, int32_t pixel) { __builtin_memcpy(p, &pixel, sizeof pixel); }

// Rows of three channels. Each pixel is written with a fourth byte, which the next one overwrites.
void resize_rows(const GwTaps& taps, const uint8_t* const* rows, uint8_t* const* outs) {
  // Of four pixels, in each half of a vector: the channels of two, side by side, widened to 16 bits.
  const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                         6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i halves = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  const auto weights = [&](const int16_t* p) {
    return _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
                                       halves);
  };
  for (int64_t o = 0; o < taps.outputs; ++o) {
    const int64_t first = 3 * int64_t(taps.firsts[o]);
    __m256i high[kRows] = {}, low[kRows] = {};
    for (int64_t t = 0; t < taps.counts[o]; t += 4) {
      const __m256i w_high = weights(taps.high + o * taps.taps + t), w_low = weights(taps.low + o * taps.taps + t);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m128i* from = reinterpret_cast<const __m128i*>(rows[r] + first + 3 * t);
        const __m256i pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(from)), pairs);
        high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(pixels, w_high));
        low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(pixels, w_low));
      }
    }
    const __m256i words = _mm256_packs_epi32(pixels_of(high, low), pixels_of(high + 2, low + 2));
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
    store_pixel(outs[0] + 3 * o, _mm_cvtsi128_si32(even));
    store_pixel(outs[1] + 3 * o, _mm_cvtsi128_si32(odd));
    store_pixel(outs[2] + 3 * o, _mm_extract_epi32(even, 1));
    store_pixel(outs[3] + 3 * o, _mm_extract_epi32(odd, 1));
  }
}

// One row of the output, from `bytes` bytes of each row of `middle`.
void resize_columns(const GwResizeJob& job, int64_t o, uint8_t* out, int64_t bytes) {
  const GwTaps& taps = job.vertical;
  const int64_t first = taps.firsts[o], last = first + taps.counts[o] - 1;
  const __m256i zero = _mm256_setzero_si256();
  const auto pair = [](const int16_t* p) {
    int32_t both;
    __builtin_memcpy(&both, p, sizeof both);
    return _mm256_set1_epi32(both);
  };
  const auto load_row = [&](int64_t row, int64_t x) {
    const uint8_t* from = job.middle + smaller(row, last) * job.middle_bytes + x;
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  };
  for (int64_t x = 0; x < bytes; x += 32) {
    __m256i high[4] = {}, low[4] = {}, sums[4];
    for (int64_t t = 0; t < taps.counts[o]; t += 2) {
      const __m256i a = load_row(first + t, x), b = load_row(first + t + 1, x);
      const __m256i w_high = pair(taps.high + o * taps.taps + t), w_low = pair(taps.low + o * taps.taps + t);
      const __m256i front = _mm256_unpacklo_epi8(a, b), back = _mm256_unpackhi_epi8(a, b);
      const __m256i pairs[4] = {_mm256_unpacklo_epi8(front, zero), _mm256_unpackhi_epi8(front, zero),
                                _mm256_unpacklo_epi8(back, zero), _mm256_unpackhi_epi8(back, zero)};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(pairs[i], w_high));
        low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(pairs[i], w_low));
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high[i], kLowBits), low[i]);
      sums[i] = _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(kHalf)), kWeightBits);
    }
    const __m256i result =
        _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
    __builtin_memcpy(out + x, &result, size_t(smaller(32, bytes - x)));
  }
}

#else

void resize_columns(const GwResizeJob& job, int64_t o, uint8_t* out, int64_t bytes) {
  constexpr int64_t most = 64;
  const GwTaps& taps = job.vertical;
  for (int64_t x = 0; x < bytes; x += most) {
    uint32_t sums[most] = {};
    const int64_t count = smaller(most, bytes - x);
    for (int64_t t = 0; t < taps.counts[o]; ++t) {
      const uint8_t* row = job.middle + (taps.firsts[o] + t) * job.middle_bytes + x;
      const uint32_t w = weight(taps, o * taps.taps + t);
      for (int64_t i = 0; i < count; ++i) sums[i] += w * row[i];
    }
    for (int64_t i = 0; i < count; ++i) out[x + i] = rounded(sums[i]);
  }
}

#endif

void resize_all_rows(const GwResizeJob& job) {
  const GwResizing& sizes = *job.sizes;
  const auto row = [&](int64_t y) { return job.in + y * sizes.row_bytes; };
  const auto out = [&](int64_t y) { return job.middle + y * job.middle_bytes; };
  int64_t done = 0;
#if defined(__AVX2__)
  // Whatever lies behind the last rows is not to be read.
  const int64_t safe = sizes.height - (GwResizeJob::kSpare + sizes.row_bytes - 1) / sizes.row_bytes;
  while (sizes.channels == 3 && safe >= kRows && done < safe) {
    const int64_t y = smaller(done, safe - kRows);
    const uint8_t* const rows[kRows] = {row(y), row(y + 1), row(y + 2), row(y + 3)};
    uint8_t* const outs[kRows] = {out(y), out(y + 1), out(y + 2), out(y + 3)};
    resize_rows(job.horizontal, rows, outs);
    done = y + kRows;
  }
#endif
  for (; done < sizes.height; ++done) resize_row(job, row(done), out(done));
}

}  // namespace

void GW_NAME(resize)(const GwResizeJob& job) {
  resize_all_rows(job);
  const int64_t bytes = job.sizes->out_width * job.sizes->channels;
  for (int64_t o = 0; o < job.sizes->out_height; ++o) resize_columns(job, o, job.out + o * bytes, bytes);
}
