// The activations that may end a forward pass or a batch norm: one row each, for vectors and for double precision.
#pragma once
#include "groupwise.h"
#include "simd.h"

namespace {

// For the reference. That of long doubles has one version in all of glibc, so that wheels load where it is old.
inline double exponential(double x) { return static_cast<double>(__builtin_expl(x)); }

template <typename Value>
GW_INLINE Value constant(float x) {
  return x - Value{};
}

template <typename Value>
GW_INLINE Value sigmoid(Value v) {
  return constant<Value>(1) / (constant<Value>(1) + exponential(-v));
}

// A row has the activation's value, and what of the outputs' gradient passes it where it has `seen`: its outputs or, as
// well or instead, what it was computed from. What is not a number stays so, and lets the gradient of a ReLU pass.
struct Linear {
  static constexpr bool reads_outputs = true;
  template <typename Value>
  static GW_INLINE Value value(Value v) {
    return v;
  }
  template <typename Value>
  static GW_INLINE Value passed(Value gradient, Value) {
    return gradient;
  }
};

struct Relu {
  static constexpr bool reads_outputs = true;
  template <typename Value>
  static GW_INLINE Value value(Value v) {
    return relu(v);
  }
  template <typename Value>
  static GW_INLINE Value passed(Value gradient, Value seen) {
    return seen <= Value{} ? Value{} : gradient;
  }
};

struct Relu6 {
  static constexpr bool reads_outputs = true;
  template <typename Value>
  static GW_INLINE Value value(Value v) {
    return at_most(relu(v), constant<Value>(6));
  }
  template <typename Value>
  static GW_INLINE Value passed(Value gradient, Value seen) {
    gradient = Relu::passed(gradient, seen);
    return seen >= constant<Value>(6) ? Value{} : gradient;
  }
};

struct Silu {
  static constexpr bool reads_outputs = false;
  template <typename Value>
  static GW_INLINE Value value(Value v) {
    return v / (constant<Value>(1) + exponential(-v));
  }
  template <typename Value>
  static GW_INLINE Value passed(Value gradient, Value seen) {
    const Value share = sigmoid(seen), one = constant<Value>(1);
    return gradient * (share * (one + seen * (one - share)));
  }
};

struct HardSwish {
  static constexpr bool reads_outputs = false;
  template <typename Value>
  static GW_INLINE Value share(Value v) {
    return Relu6::value(v + constant<Value>(3)) / constant<Value>(6);
  }
  template <typename Value>
  static GW_INLINE Value value(Value v) {
    return v * share(v);
  }
  template <typename Value>
  static GW_INLINE Value passed(Value gradient, Value seen) {
    const Value three = constant<Value>(3);
    const Value slope = ((seen <= -three) | (seen >= three)) ? Value{} : seen / constant<Value>(6);
    return gradient * (share(seen) + slope);
  }
};

// Returns function(row), which is compiled for each activation by itself: none of its loops asks which one it is.
template <typename Function>
GW_INLINE auto with_activation(int64_t activation, const Function& function) {
  switch (activation) {
    case GW_RELU:
      return function(Relu{});
    case GW_RELU6:
      return function(Relu6{});
    case GW_SILU:
      return function(Silu{});
    case GW_HARD_SWISH:
      return function(HardSwish{});
    default:
      return function(Linear{});
  }
}

}  // namespace
