// Vectors of kLanes floats, in the compiler's own vector types: one source for every instruction set.
#pragma once
#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define GW_LANES 16
#define GW_REGISTERS 32
#elif defined(__AVX__)
#define GW_LANES 8
#define GW_REGISTERS 16
#elif defined(__aarch64__)
#define GW_LANES 4
#define GW_REGISTERS 32
#else
#define GW_LANES 4
#define GW_REGISTERS 16
#endif

namespace {

constexpr int kLanes = GW_LANES;

typedef float Vector __attribute__((vector_size(kLanes * 4), may_alias));
typedef float UnalignedVector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Indices __attribute__((vector_size(kLanes * 4), may_alias));
typedef int32_t UnalignedIndices __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

#define GW_INLINE inline __attribute__((always_inline))

GW_INLINE Vector load(const float* p) { return *reinterpret_cast<const UnalignedVector*>(p); }
GW_INLINE void store(float* p, Vector v) { *reinterpret_cast<UnalignedVector*>(p) = v; }
// x - 0 is x for every x, so that no instruction is left of it.
GW_INLINE Vector splat(float x) { return x - Vector{}; }
// A value that stays in its register: GCC loads what is used several times anew for each use, and depthwise
// convolutions then took up to 1.4 times as long in the cache.
GW_INLINE Vector kept(Vector v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}
// max(v, 0) that keeps NaN, as the frameworks' ReLU does.
template <typename Value>
GW_INLINE Value relu(Value v) {
  return v < Value{} ? Value{} : v;
}
template <typename Value>
GW_INLINE Value at_most(Value v, Value bound) {
  return v > bound ? bound : v;
}

// e to the power of each lane, right to 2 units in the last place: 2 to the power of a whole number, times a polynomial
// of the rest, which is at most half of log(2). Source: Cody and Waite, Software Manual for the Elementary Functions,
// 1980, chapter 6.
GW_INLINE Vector exponential(Vector x) {
  // Beyond these limits the result is 0, or infinite.
  x = at_most(x, splat(89));
  x = x < splat(-104) ? splat(-104) : x;
  // Added to this, a number loses what is behind its point.
  const Vector shift = splat(0x1.8p23f), shifted = x * splat(0x1.715476p0f) + shift, whole = shifted - shift;
  const Indices exponent = reinterpret_cast<Indices>(shifted) - reinterpret_cast<Indices>(shift);
  const Vector rest = (x - whole * splat(0x1.62e4p-1f)) - whole * splat(0x1.7f7d1cp-20f);
  // The Chebyshev fit of (e^x - 1 - x) / x^2, then the 1 and the 1 that it leaves.
  constexpr float coefficients[] = {0x1.6d4328p-10f, 0x1.120b74p-7f, 0x1.5554eap-5f, 0x1.5554dcp-3f, 0.5f, 1, 1};
  Vector sum{};
#pragma GCC unroll 8
  for (float coefficient : coefficients) sum = sum * rest + splat(coefficient);
  // In two steps, since a single factor would be infinite or 0 where the result need not be.
  const Indices half = exponent >> 1, other = exponent - half;
  const auto power = [](Indices n) { return reinterpret_cast<Vector>((n + 127) << 23); };
  return sum * power(half) * power(other);
}

// The first `count` lanes of memory, fewer than a vector's; the others are zero, and stay untouched by a store.
#if defined(__AVX512F__)
GW_INLINE __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
GW_INLINE Vector load_partial(const float* p, int64_t count) {
  return reinterpret_cast<Vector>(_mm512_maskz_loadu_ps(first_lanes(count), p));
}
GW_INLINE void store_partial(float* p, Vector v, int64_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), reinterpret_cast<__m512>(v));
}
#elif defined(__AVX__)
// A masked store takes an AMD processor about as long as these three together do, ten times over.
GW_INLINE Vector load_partial(const float* p, int64_t count) {
  static const int32_t ones_then_zeros[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  const void* mask = ones_then_zeros + kLanes - count;
  return reinterpret_cast<Vector>(_mm256_maskload_ps(p, _mm256_loadu_si256(static_cast<const __m256i*>(mask))));
}
GW_INLINE void store_partial(float* p, Vector v, int64_t count) {
  const __m256 all = reinterpret_cast<__m256>(v);
  __m128 rest = _mm256_castps256_ps128(all);
  if (count & 4) {
    _mm_storeu_ps(p, rest);
    rest = _mm256_extractf128_ps(all, 1);
    p += 4;
  }
  if (count & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
    rest = _mm_movehl_ps(rest, rest);
    p += 2;
  }
  if (count & 1) _mm_store_ss(p, rest);
}
#else
GW_INLINE Vector load_partial(const float* p, int64_t count) {
  Vector v{};
  __builtin_memcpy(&v, p, static_cast<size_t>(count) * sizeof(float));
  return v;
}
GW_INLINE void store_partial(float* p, Vector v, int64_t count) {
  __builtin_memcpy(p, &v, static_cast<size_t>(count) * sizeof(float));
}
#endif
GW_INLINE Vector load_some(const float* p, int64_t count) { return count >= kLanes ? load(p) : load_partial(p, count); }
GW_INLINE void store_some(float* p, Vector v, int64_t count) {
  if (count >= kLanes) store(p, v);
  else store_partial(p, v, count);
}

// Past the caches: saves reading what is about to be overwritten. `p` must be aligned to the vector.
GW_INLINE void store_streaming(float* p, Vector v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
#elif defined(__AVX__)
  _mm256_stream_ps(p, reinterpret_cast<__m256>(v));
#elif defined(__SSE__)
  _mm_stream_ps(p, reinterpret_cast<__m128>(v));
#else
  store(p, v);
#endif
}
GW_INLINE void fence_streaming() {
#if defined(__SSE__)
  _mm_sfence();
#endif
}

// Lane l of the result is lane from[l] of `v`.
GW_INLINE Vector pick(Vector v, Indices from) {
#if defined(__clang__)
  Vector picked;
  for (int l = 0; l < kLanes; ++l) picked[l] = v[from[l]];
  return picked;
#else
  return __builtin_shuffle(v, from);
#endif
}

// Lane l of the result is lane I[l] of `a` and `b`, side by side. GCC's own name for it: 11 and older know no other.
template <int... I>
GW_INLINE Vector shuffle(Vector a, Vector b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Indices{I...});
#endif
}

template <int... I>
struct Sequence {};
template <int N, int... I>
struct MakeSequence : MakeSequence<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSequence<0, I...> {
  using type = Sequence<I...>;
};

// Lane l of the result is lane l - l % Width + Index: every group of `Width` lanes filled with one of its members.
template <int Width, int Index, int... I>
GW_INLINE Vector spread_lanes(Vector v, Sequence<I...>) {
  return shuffle<(I - I % Width + Index)...>(v, v);
}
template <int Width, int Index>
GW_INLINE Vector spread(Vector v) {
  if constexpr (Width == 1) return v;
  else return spread_lanes<Width, Index>(v, typename MakeSequence<kLanes>::type{});
}

}  // namespace
