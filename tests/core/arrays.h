// What the draws share: a random engine, and arrays that begin at unaligned addresses and end where their memory ends.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <random>
#include <string>
#include <vector>

#include "groupwise.h"

namespace {

std::mt19937_64 engine;

int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }

// Floats that begin four bytes past an aligned address, and end where the allocation does.
struct Array {
  std::vector<char> memory;
  float* data;
  int64_t count;

  explicit Array(int64_t n) : memory(size_t(n + 1) * sizeof(float)), count(n) {
    data = reinterpret_cast<float*>(memory.data()) + 1;
  }
  void fill() {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) data[i] = normal(engine);
  }
  void poison() {
    for (int64_t i = 0; i < count; ++i) data[i] = NAN;
  }
  Array magnitude() const {
    Array other(count);
    for (int64_t i = 0; i < count; ++i) other.data[i] = fabsf(data[i]);
    return other;
  }
};

// Floats or bfloat16 that begin at an odd element, and end where the allocation does.
struct Elements {
  GwElement type;
  std::vector<char> memory;
  int64_t count;

  Elements(GwElement t, int64_t n) : type(t), memory(size_t(n + 1) * size(), char(0x5a)), count(n) {}
  size_t size() const { return type == GW_FLOAT32 ? 4 : 2; }
  char* data() { return memory.data() + size(); }
  float operator[](int64_t i) const {
    uint32_t bits = 0;
    memcpy(reinterpret_cast<char*>(&bits) + 4 - size(), memory.data() + size_t(i + 1) * size(), size());
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
  // A value that bfloat16 holds.
  void set(int64_t i, float value) {
    memcpy(data() + size_t(i) * size(), reinterpret_cast<const char*>(&value) + 4 - size(), size());
  }
};

std::string text(const GwConvolution& c) {
  char line[400];
  snprintf(line, sizeof line,
           "inputs %ldx%ldx%ldx%ld outputs %ldx%ldx%ld kernel %ldx%ld groups %ld strides %ld,%ld dilation %ld,%ld "
           "padding %ld,%ld",
           long(c.batch), long(c.height), long(c.width), long(c.in_channels), long(c.out_height), long(c.out_width),
           long(c.out_channels), long(c.kernel_height), long(c.kernel_width), long(c.groups), long(c.stride_y),
           long(c.stride_x), long(c.dilation_y), long(c.dilation_x), long(c.pad_top), long(c.pad_left));
  return line;
}

}  // namespace
