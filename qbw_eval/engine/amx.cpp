// Convolutions of integers on a CPU, in one pass with everything that follows them (`amx_kernel.py` compiles this):
//
//     levels = round(clamp(conv(x, w) * scale + bias + other))
//
// Activations are uint8, weights w = factor * m + (factor - 1) with m in int8 and a factor of 1 or 2. Images are NHWC.
//
// A *line* is one row of the output for `together` images, and its pixels are numbered pixel by pixel, image by image.
// What the convolution reads for some lines is copied beforehand, with zeros around it, to where pixels that follow each
// other lie side by side for every place of the window, whatever its stride:
//
//     [row of the image][slab of channels][column % stride][column / stride][image][channel of the slab]
//
// So sixteen pixels of any line, at any place of the window, are sixteen times `slab` bytes in a row: one tile. Places
// above and below an image are skipped, those beside it are zeros. Where a whole row of the window has 64 channels or
// fewer, it is copied as if it were the channels of one place (*folded*), so that tiles are full.
//
// A tile of pixels times one of weights is 16 x 16 sums over 64 channels; four are computed at a time, from two of each.
// With a factor of 2 the total is 2 * (sum of x * m) + (sum of x); the second is added up while copying. What follows is
// done to the four before, between the multiplications, since other units of the CPU do it.
//
// Where a window is one pixel, and channels are whole slabs, tiles are read from the images themselves.
//
// Activations and weights of 9 to 16 bits come as two *halves*, bytes both: x = 256 * high + low, where a pixel has all
// its low bytes and then all its high ones; m the same, whose high bytes have a sign. The four tiles of sums are then
// those of all halves with each other, for 16 pixels and 16 outputs, which are put together in 64 bits:
//
//     m * x = 65536 * (high * high) + 256 * (high * low + low * high) + low * low
//
// What is float32 is split into *thirds*, bfloat16 all three, whose sum it is: x = high + middle + low. Images are split
// while they are copied, weights before. Of the nine products the six largest are added up in float32; what is left out
// is 2**-24 of a product at most, and mostly far less (after Henry, Tang, Heinecke 2019, arXiv 1904.06376, section 2).
// So that not every one is rounded as the whole sum is, the largest of the six comes last, and a few steps are added up
// by themselves first.
//
// Every operation in float32 is rounded by itself, in the order of `passes`; nothing is contracted (-ffp-contract=off).
//
// QBW_TILES: with AMX's instructions. Without it, plain loops do the same, slowly: for tests.

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <type_traits>

#ifdef QBW_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t kLanes = 16;      // pixels and outputs of a tile
constexpr int64_t kSlab = 64;       // bytes of a pixel's channels in a tile
constexpr int64_t kMostTogether = 32;
constexpr int64_t kCached = 768 << 10;  // bytes of weights that are thought to stay in a core's own cache
constexpr int64_t kManyPixels = 256;    // an item's, so that weights from elsewhere are worth fetching
constexpr int64_t kFewPixels = 128;     // or where they are near
constexpr int64_t kStepsOfFloats = 8;   // that are added up by themselves

#define INLINE inline __attribute__((always_inline))

INLINE int64_t over(int64_t number, int64_t by) { return (number + by - 1) / by; }
INLINE int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }
INLINE int64_t most(int64_t one, int64_t other) { return one > other ? one : other; }

enum Rounding : int32_t { kNone, kScaled, kClipping, kStep };  // `convolutions.Rounding`

// What is done with a sum; `amx_kernel._Levels` and `_Call` are the same.
struct Levels {
  int32_t rounding;
  float largest;
  float unit;
  uint8_t *out;  // (pixels, outputs), or (pixels, 2, outputs) low and high bytes where the largest is more than a byte
};

struct Call {
  const uint8_t *x;
  const int8_t *weights;
  const float *scale, *bias;
  const float *other;  // or null
  float *values;       // or null
  Levels levels[2];
  float lowest, highest;  // what images in float32 are clamped to first
  int64_t samples, channels, height, width, outputs, down, across;
  int64_t kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
  int64_t folded, factor, parts, relu, streamed, threads, scratch;  // parts: 1; 2 halves; or 3, thirds of float32

  bool thirds() const { return parts == 3; }
  int64_t unit() const { return thirds() ? 2 : 1; }                             // bytes of a part
  int64_t pixel() const { return channels * (thirds() ? sizeof(float) : parts); }  // bytes of a pixel of the images
};

// --- tiles: 0..3 hold sums, 4 and 5 pixels, 6 and 7 weights ----------------------------------------------------------

#ifdef QBW_TILES

struct Tiles {
  explicit Tiles(int64_t slab) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      bool pixels = tile == 4 || tile == 5, weights = tile > 5;
      config.bytes[tile] = static_cast<uint16_t>(pixels ? slab : 64);
      config.rows[tile] = static_cast<uint8_t>(weights ? slab / 4 : kLanes);
    }
    __asm__ volatile("" ::"r"(&config) : "memory");  // compilers do not know how much of it is read
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

#define TILE_ZERO(tiles, tile) _tile_zero(tile)
#define TILE_LOAD(tiles, tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_MULTIPLY(tiles, sums, pixels, weights) _tile_dpbusd(sums, pixels, weights)
#define TILE_MULTIPLY_LOW(tiles, sums, pixels, weights) _tile_dpbuud(sums, pixels, weights)
#define TILE_MULTIPLY_FLOATS(tiles, sums, pixels, weights) _tile_dpbf16ps(sums, pixels, weights)
#define TILE_STORE(tiles, tile, to, stride) _tile_stored(tile, to, stride)

#else

struct Tiles {
  int64_t slab;
  alignas(64) int32_t sums[4][kLanes][kLanes];
  alignas(64) uint8_t pixels[2][kLanes][kSlab];
  alignas(64) int8_t weights[2][kLanes][kSlab];

  explicit Tiles(int64_t slab) : slab(slab) {}

  void zero(int tile) { std::memset(sums[tile], 0, sizeof sums[tile]); }

  void load(int tile, const void *from, int64_t stride) {
    const char *row = static_cast<const char *>(from);
    int64_t rows = tile < 6 ? kLanes : slab / 4, bytes = tile < 6 ? slab : kSlab;
    for (int64_t i = 0; i < rows; ++i, row += stride) {
      std::memcpy(tile < 6 ? static_cast<void *>(pixels[tile - 4][i]) : weights[tile - 6][i], row,
                  static_cast<size_t>(bytes));
    }
  }

  template <typename Weight>
  void multiply(int to, int left, int right) {
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t k = 0; k < slab; ++k) {
        int32_t x = pixels[left - 4][i][k];
        for (int64_t j = 0; j < kLanes; ++j) {
          sums[to][i][j] += x * static_cast<Weight>(weights[right - 6][k / 4][4 * j + k % 4]);
        }
      }
    }
  }

  static float value_of(const void *half) {
    uint32_t digits = 0;
    std::memcpy(reinterpret_cast<char *>(&digits) + 2, half, 2);
    float value;
    std::memcpy(&value, &digits, sizeof value);
    return value;
  }

  // What is at even places is added up by itself first, and what is at odd ones, as AMX does.
  void multiply_floats(int to, int left, int right) {
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t j = 0; j < kLanes; ++j) {
        float sum, some[2] = {0.0f, 0.0f};
        for (int64_t k = 0; k < slab / 2; ++k) {
          const void *weight = &weights[right - 6][k / 2][4 * j + k % 2 * 2];
          some[k % 2] += value_of(&pixels[left - 4][i][2 * k]) * value_of(weight);
        }
        std::memcpy(&sum, &sums[to][i][j], sizeof sum);
        sum += some[0] + some[1];
        std::memcpy(&sums[to][i][j], &sum, sizeof sum);
      }
    }
  }

  void store(int tile, void *to, int64_t stride) const {
    for (int64_t i = 0; i < kLanes; ++i) {
      std::memcpy(static_cast<char *>(to) + i * stride, sums[tile][i], sizeof sums[tile][i]);
    }
  }
};

#define TILE_ZERO(tiles, tile) (tiles).zero(tile)
#define TILE_LOAD(tiles, tile, from, stride) (tiles).load(tile, from, stride)
#define TILE_MULTIPLY(tiles, sums, pixels, weights) (tiles).multiply<int8_t>(sums, pixels, weights)
#define TILE_MULTIPLY_LOW(tiles, sums, pixels, weights) (tiles).multiply<uint8_t>(sums, pixels, weights)
#define TILE_MULTIPLY_FLOATS(tiles, sums, pixels, weights) (tiles).multiply_floats(sums, pixels, weights)
#define TILE_STORE(tiles, tile, to, stride) (tiles).store(tile, to, stride)

#endif

// --- what follows a sum, sixteen outputs at a time -------------------------------------------------------------------

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(128)));
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t HalfWords __attribute__((vector_size(32)));

template <typename Vector, bool WHOLE>
INLINE Vector loaded(const void *from, int64_t lanes) {
  Vector vector{};
  if (WHOLE) {
    std::memcpy(&vector, from, sizeof vector);
  } else {
    std::memcpy(&vector, from, static_cast<size_t>(lanes) * (sizeof vector / kLanes));
  }
  return vector;
}

template <bool WHOLE, typename Vector>
INLINE void stored(void *to, Vector vector, int64_t lanes) {
  if (WHOLE) {
    std::memcpy(to, &vector, sizeof vector);
  } else {
    std::memcpy(to, &vector, static_cast<size_t>(lanes) * (sizeof vector / kLanes));
  }
}

// Past the caches, which hold no more of it by the time that it is read; to a multiple of 64 bytes.
INLINE void streamed(float *to, Floats vector) {
#ifdef __AVX512F__
  _mm512_stream_ps(to, (__m512)vector);
#else
  __m128 parts[4];
  std::memcpy(parts, &vector, sizeof vector);
  for (int64_t i = 0; i < 4; ++i) _mm_stream_ps(to + 4 * i, parts[i]);
#endif
}

// Returns levels, below other bits.
INLINE Ints levels_of(Floats value, const Levels &levels) {
  const Floats zero{}, largest = zero + levels.largest, unit = zero + levels.unit;
  value = value > zero ? value : zero;  // which NaN becomes
  if (levels.rounding == kClipping) {
    value = (value < unit ? value : unit) * largest / unit;
  } else {
    if (levels.rounding == kStep) value = value / unit;
    value = value < largest ? value : largest;
  }
  value = value + 8388608.0f;  // 2**23, from where on float32 has no digits behind the point: rounds half to even
  Ints digits;
  std::memcpy(&digits, &value, sizeof digits);
  return digits;
}

// Writes levels of a pixel, from an output on.
template <bool WHOLE>
INLINE void store_levels(Floats value, const Levels &levels, int64_t pixel, int64_t outputs, int64_t output,
                         int64_t lanes) {
  const Ints digits = levels_of(value, levels);
  const Bytes low = __builtin_convertvector(digits & 255, Bytes);
  if (levels.largest <= 255.0f) {
    stored<WHOLE>(levels.out + pixel * outputs + output, low, lanes);
  } else {
    uint8_t *to = levels.out + 2 * pixel * outputs + output;
    stored<WHOLE>(to, low, lanes);
    stored<WHOLE>(to + outputs, __builtin_convertvector(digits >> 8 & 255, Bytes), lanes);
  }
}

struct Line {
  const uint8_t *pixels;      // where its first window begins
  int64_t first, last;        // the steps inside the image
  int64_t start;              // the number of its first pixel in the output
  int64_t images;             // that are there
  int64_t count;              // pixels, of images that are not there too
  const int32_t *windows;     // the sums of activations under each pixel's window; with a factor of 2 only
};

// Up to 2 x 2 tiles of sums that something is still to be done with; or one of each product of halves.
struct Finishing {
  const int32_t *sums;  // (pixels, 32); or (halves of activations, 16 pixels, halves of weights, 16)
  int64_t next, end;    // pixels, from `from` on
  int64_t from;         // the first one's number in its line
  int64_t output;       // the first
  int64_t columns;      // tiles of outputs
  const Line *line;
};

// How pixels of a line lie in the output.
struct Places {
  const int64_t *pixel;  // from the line's first one on
  const int64_t *image;
};

using Finish = void (*)(const Call &, const Places &, Finishing &, int64_t);

enum Kind { kValues, kLevels, kAny };
enum Sums { kSums, kOddSums, kHalves, kOddHalves, kThirds };  // of x * m, whole or in halves; odd: w = 2 * m + 1

// Returns sums of x * w in float32, rounded once.
template <Sums SUMS>
INLINE Floats total_of(const int32_t *sums, const int32_t *window) {
  if (SUMS == kThirds) return loaded<Floats, true>(sums, kLanes);
  Ints sum = loaded<Ints, true>(sums, kLanes);
  if (SUMS == kSums) return __builtin_convertvector(sum, Floats);
  if (SUMS == kOddSums) return __builtin_convertvector(sum + sum + *window, Floats);
  const int32_t *others = sums + 2 * kLanes * kLanes;  // with the high halves of activations
  const Ints middle = loaded<Ints, true>(sums + kLanes, kLanes) + loaded<Ints, true>(others, kLanes);
  Longs total = __builtin_convertvector(loaded<Ints, true>(others + kLanes, kLanes), Longs);
  total = (total << 8) + __builtin_convertvector(middle, Longs);
  total = (total << 8) + __builtin_convertvector(sum, Longs);
  if (SUMS == kOddHalves) total = total + total + static_cast<int64_t>(*window);
  return __builtin_convertvector(total, Floats);
}

template <Sums SUMS, bool ADD, Kind KIND, bool WHOLE>
INLINE void finish_rows(const Call &call, const Places &places, Finishing &what, int64_t count) {
  const Floats zero{};
  Floats scale[2], bias[2];
  int64_t lanes[2];
  for (int64_t column = 0; column < 2; ++column) {
    const int64_t output = what.output + (column < what.columns ? column : 0) * kLanes;
    lanes[column] = least(kLanes, call.outputs - output);
    scale[column] = loaded<Floats, WHOLE>(call.scale + output, lanes[column]);
    bias[column] = loaded<Floats, WHOLE>(call.bias + output, lanes[column]);
  }
  // What is stored might be any of these, for all that a compiler knows; so they are copied.
  const Levels first = call.levels[0], second = call.levels[1];
  const int64_t begin = what.next, end = begin + least(count, what.end - begin);
  const int64_t columns = SUMS == kHalves || SUMS == kOddHalves ? 1 : what.columns;
  const int64_t outputs = call.outputs, from = what.from, images = what.line->images;
  const int64_t start = what.line->start, first_output = what.output;
  const int64_t *const pixel = places.pixel, *const image = places.image;
  const int32_t *const windows = what.line->windows, *const sums = what.sums;
  const float *const other = call.other;
  float *const values = call.values;
  const bool relu = call.relu, streams = call.streamed;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t number = from + row;
    if (image[number] >= images) continue;
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t place = start + pixel[number], output = first_output + column * kLanes, n = lanes[column];
      const int64_t at = place * outputs + output;
      const Floats sum = total_of<SUMS>(sums + row * 2 * kLanes + column * kLanes, windows + number);
      Floats value = sum * scale[column] + bias[column];
      if (ADD) value = value + loaded<Floats, WHOLE>(other + at, n);
      if (KIND != kLevels && relu) value = value <= zero ? zero : value;  // NaN stays; levels are not negative anyway
      if (KIND == kValues || (KIND == kAny && values)) {
        if (WHOLE && streams) {
          streamed(values + at, value);
        } else {
          stored<WHOLE>(values + at, value, n);
        }
      }
      if (KIND == kLevels || (KIND == kAny && first.rounding)) {
        store_levels<WHOLE>(value, first, place, outputs, output, n);
      }
      if (KIND == kAny && second.rounding) store_levels<WHOLE>(value, second, place, outputs, output, n);
    }
  }
  what.next = end;
}

template <Sums SUMS, bool ADD, Kind KIND>
void finish(const Call &call, const Places &places, Finishing &what, int64_t count) {
  if (what.next == what.end) return;
  if (what.output + what.columns * kLanes <= call.outputs) {
    finish_rows<SUMS, ADD, KIND, true>(call, places, what, count);
  } else {
    finish_rows<SUMS, ADD, KIND, false>(call, places, what, count);
  }
}

template <Sums SUMS, bool ADD>
Finish finish_of(const Call &call) {
  const bool first = call.levels[0].rounding != kNone, second = call.levels[1].rounding != kNone;
  if (call.values && !first && !second) return finish<SUMS, ADD, kValues>;
  if (!call.values && first && !second) return finish<SUMS, ADD, kLevels>;
  return finish<SUMS, ADD, kAny>;
}

template <Sums SUMS>
Finish finish_of(const Call &call) {
  return call.other ? finish_of<SUMS, true>(call) : finish_of<SUMS, false>(call);
}

Finish finish_of(const Call &call) {
  if (call.thirds()) return finish_of<kThirds>(call);
  if (call.parts == 2) return call.factor == 2 ? finish_of<kOddHalves>(call) : finish_of<kHalves>(call);
  return call.factor == 2 ? finish_of<kOddSums>(call) : finish_of<kSums>(call);
}

// --- how the work is cut up ------------------------------------------------------------------------------------------

struct Plan {
  bool direct;      // whether nothing is copied: a 1x1 convolution of whole slabs. All pixels are one image's then.
  int64_t stride;   // bytes between a line's pixels
  int64_t part;     // bytes between parts of one
  int64_t pieces, slab, slabs, places_x;  // places_x: of a row of the window, of which a folded one has one
  int64_t phases, columns;                // of a row of the copy; columns are those of one phase
  int64_t together, groups;               // images
  int64_t slab_bytes, row_bytes, row_pixels;
  int64_t rows, strips;            // of the output, of an item; items along a group
  int64_t group_rows;              // of the copy
  int64_t sets, of_set;            // of groups; an item has one
  int64_t blocks, turns, chunks;   // of 16 outputs; two blocks, or one of halves, at a time; an item has one chunk
  int64_t steps;                   // of a window
  int64_t line, line_room;         // pixels, and the same in whole pairs of tiles
};

int64_t rows_for(const Call &call, int64_t rows) {
  return (rows - 1) * call.stride_y + (call.kernel_y - 1) * call.dilation_y + 1;
}

int64_t phase_of(const Call &call, int64_t place) { return place * call.dilation_x % call.stride_x; }

// Phases are numbered in the order of the first places that have them; after so many places they come again.
int64_t period_of(const Call &call) { return call.stride_x / std::gcd(call.stride_x, call.dilation_x); }

// Where the first pixel of a line finds a place of its window: the how-manieth column, phases after each other.
int64_t column_of(const Call &call, const Plan &plan, int64_t place) {
  return place % period_of(call) * plan.columns + place * call.dilation_x / call.stride_x;
}

bool is_direct(const Call &call) {
  return call.kernel_y == 1 && call.kernel_x == 1 && call.stride_y == 1 && call.stride_x == 1 && !call.padding_y &&
         !call.padding_x && call.channels % kSlab == 0 && !call.thirds();
}

// Cuts all pixels of all images into lines of whole pairs of tiles, an item each; there is one column, of one place.
Plan direct_plan_of(const Call &call) {
  Plan plan{};
  const int64_t pixels = call.samples * call.down * call.across, pair = 2 * kLanes;
  plan.direct = true;
  plan.stride = call.pixel();
  plan.part = call.channels;
  plan.pieces = plan.places_x = plan.phases = plan.together = plan.rows = plan.strips = plan.of_set = 1;
  plan.slab = plan.slab_bytes = kSlab;
  plan.slabs = plan.steps = call.channels / kSlab;
  plan.line = over(least(over(pixels, call.threads), most(pair, call.scratch / plan.stride)), pair) * pair;
  plan.line_room = plan.line;
  plan.sets = plan.groups = over(pixels, plan.line);
  plan.blocks = over(call.outputs, kLanes);
  plan.turns = call.parts == 2 ? plan.blocks : over(plan.blocks, 2);
  plan.chunks = least(plan.turns, over(call.threads, plan.sets));
  return plan;
}

Plan plan_of(const Call &call) {
  if (is_direct(call)) return direct_plan_of(call);
  Plan plan{};
  plan.pieces = call.folded ? call.kernel_x : 1;
  plan.places_x = call.folded ? 1 : call.kernel_x;
  const int64_t deep = plan.pieces * call.channels * call.unit();
  plan.slab = deep < kSlab ? over(deep, 4) * 4 : kSlab;
  plan.slabs = over(deep, plan.slab);
  plan.stride = plan.slab;
  plan.phases = least(plan.places_x, period_of(call));
  plan.columns = call.across + (plan.places_x - 1) * call.dilation_x / call.stride_x;
  // As few images together as fill tiles well, and pairs of them; no more than can be copied for one row of the output.
  const int64_t of_image = rows_for(call, 1) * call.parts * plan.slabs * plan.phases * plan.columns * plan.slab;
  const int64_t most_together = most(1, least(least(kMostTogether, call.samples), call.scratch / of_image));
  int64_t fewest = 0;
  for (int64_t together = 1; together <= most_together; ++together) {
    int64_t tiles = over(call.across * together, kLanes);
    int64_t single = call.parts == 2 ? 0 : tiles % 2;  // which takes longer than half a pair
    int64_t cost = over(call.samples, together) * (4 * tiles + single);
    if (together == 1 || cost * 33 < fewest * 32) fewest = cost, plan.together = together;
  }
  plan.groups = over(call.samples, plan.together);
  plan.line = call.across * plan.together;
  plan.line_room = over(plan.line, 2 * kLanes) * 2 * kLanes;
  plan.row_pixels = plan.phases * plan.columns * plan.together;
  plan.slab_bytes = plan.row_pixels * plan.slab;
  plan.part = plan.slabs * plan.slab_bytes;
  plan.row_bytes = call.parts * plan.part;
  plan.rows = call.down;
  while (plan.rows > 1 && rows_for(call, plan.rows) * plan.row_bytes > call.scratch) --plan.rows;
  plan.strips = over(call.down, plan.rows);
  plan.rows = over(call.down, plan.strips);
  plan.strips = over(call.down, plan.rows);
  plan.group_rows = rows_for(call, plan.rows);
  plan.blocks = over(call.outputs, kLanes);
  plan.turns = call.parts == 2 ? plan.blocks : over(plan.blocks, 2);
  plan.steps = call.kernel_y * plan.places_x * plan.slabs;
  plan.of_set = 1;
  if (plan.strips == 1) {
    int64_t weights = call.parts * plan.blocks * plan.steps * kLanes * plan.slab;
    int64_t wanted = over(weights > kCached ? kManyPixels : kFewPixels, call.down * plan.line);
    wanted = least(wanted, call.scratch / (plan.group_rows * plan.row_bytes));
    plan.of_set = most(1, least(wanted, plan.groups / call.threads));
  }
  plan.sets = over(plan.groups, plan.of_set);
  plan.chunks = least(plan.turns, over(call.threads, plan.sets * plan.strips));
  return plan;
}

// --- an item ---------------------------------------------------------------------------------------------------------

INLINE void copy_channels(uint8_t *to, const uint8_t *from, int64_t channels) {
  if (channels == kSlab) {
    std::memcpy(to, from, kSlab);
  } else if (channels == 16) {
    std::memcpy(to, from, 16);
  } else {
    std::memcpy(to, from, static_cast<size_t>(channels));
  }
}

// Returns the bfloat16 next to float32 numbers, as bits of float32.
INLINE Words rounded(Floats value) {
  Words bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
}

INLINE Floats less(Floats value, Words bits) {
  Floats part;
  std::memcpy(&part, &bits, sizeof part);
  return value - part;
}

// Writes thirds of up to sixteen channels, which are not infinite. The second rest has no more digits than fit; what is
// NaN stays it, in one of the thirds at least.
template <bool WHOLE>
INLINE void split(const Call &call, const Plan &plan, const uint8_t *from, uint8_t *to, int64_t channels) {
  const Floats zero{}, lowest = zero + call.lowest, highest = zero + call.highest;
  Floats value = loaded<Floats, WHOLE>(from, channels);
  value = value < lowest ? lowest : value;
  value = value > highest ? highest : value;
  const Words high = rounded(value);
  value = less(value, high);
  const Words middle = rounded(value);
  value = less(value, middle);
  Words low;
  std::memcpy(&low, &value, sizeof low);
  stored<WHOLE>(to, __builtin_convertvector(high >> 16, HalfWords), channels);
  stored<WHOLE>(to + plan.part, __builtin_convertvector(middle >> 16, HalfWords), channels);
  stored<WHOLE>(to + 2 * plan.part, __builtin_convertvector(low >> 16, HalfWords), channels);
}

template <bool THIRDS>
INLINE void copy_channels(const Call &call, const Plan &plan, uint8_t *to, const uint8_t *from, int64_t channels) {
  if (!THIRDS) {
    copy_channels(to, from, channels);
    return;
  }
  constexpr int64_t bytes = sizeof(float);
  for (; channels >= kLanes; channels -= kLanes, from += kLanes * bytes, to += 2 * kLanes) {
    split<true>(call, plan, from, to, kLanes);
  }
  if (channels) split<false>(call, plan, from, to, channels);
}

template <bool THIRDS>
INLINE void clear(const Plan &plan, uint8_t *to, int64_t bytes) {
  std::memset(to, 0, static_cast<size_t>(bytes));
  for (int64_t part = 1; THIRDS && part < 3; ++part) std::memset(to + part * plan.part, 0, static_cast<size_t>(bytes));
}

// Copies one row of one image, or one half of it, to where its first channel of the first column lies; or its thirds.
template <bool THIRDS>
void copy_row(const Call &call, const Plan &plan, const uint8_t *row, uint8_t *to) {
  constexpr int64_t unit = THIRDS ? 2 : 1, bytes = THIRDS ? sizeof(float) : 1;  // of a channel, there and in the image
  const int64_t gap = plan.together * plan.slab;                                // between columns
  const int64_t deep = plan.slab / unit, pixel = call.pixel();
  for (int64_t number = 0; number < plan.phases; ++number) {
    uint8_t *phase = to + number * plan.columns * gap;
    for (int64_t piece = 0; piece < plan.pieces; ++piece) {
      const int64_t left = phase_of(call, number) + piece * call.dilation_x - call.padding_x;  // of the first column
      const int64_t begin = left >= 0 ? 0 : least(plan.columns, over(-left, call.stride_x));
      const int64_t inside = left >= call.width ? 0 : (call.width - 1 - left) / call.stride_x + 1;
      const int64_t end = most(begin, least(plan.columns, inside));
      for (int64_t slab = 0; slab < plan.slabs; ++slab) {
        const int64_t channels = least(deep, call.channels - slab * deep);
        uint8_t *column = phase + slab * plan.slab_bytes + piece * call.channels * unit;
        const uint8_t *from = row + (begin * call.stride_x + left) * pixel + slab * deep * bytes;
        for (int64_t i = 0; i < begin; ++i, column += gap) clear<THIRDS>(plan, column, channels * unit);
        for (int64_t i = begin; i < end; ++i, column += gap, from += call.stride_x * pixel) {
          copy_channels<THIRDS>(call, plan, column, from, channels);
        }
        for (int64_t i = end; i < plan.columns; ++i, column += gap) clear<THIRDS>(plan, column, channels * unit);
      }
    }
    const int64_t used = plan.pieces * call.channels * unit - (plan.slabs - 1) * plan.slab, rest = plan.slab - used;
    uint8_t *column = phase + (plan.slabs - 1) * plan.slab_bytes + used;
    for (int64_t i = 0; rest && i < plan.columns; ++i, column += gap) clear<THIRDS>(plan, column, rest);
  }
}

INLINE int32_t sum_of(const uint8_t *values, int64_t count) {
  __m128i sums = _mm_setzero_si128();
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i *>(values + i));
    sums = _mm_add_epi64(sums, _mm_sad_epu8(some, _mm_setzero_si128()));
  }
  int32_t sum = _mm_cvtsi128_si32(sums) + _mm_cvtsi128_si32(_mm_unpackhi_epi64(sums, sums));
  for (; i < count; ++i) sum += values[i];
  return sum;
}

// Adds up the channels of every pixel of a row of the copy.
void sum_row(const Call &call, const Plan &plan, const uint8_t *row, int32_t *sums) {
  for (int64_t slab = 0; slab < call.parts * plan.slabs; ++slab) {
    const int32_t unit = slab < plan.slabs ? 1 : 256;
    for (int64_t pixel = 0; pixel < plan.row_pixels; ++pixel, row += plan.slab) {
      const int32_t sum = sum_of(row, plan.slab == kSlab ? kSlab : plan.slab) * unit;
      sums[pixel] = slab ? sums[pixel] + sum : sum;
    }
  }
}

// A thread's own memory, which it keeps for the next call.
struct Scratch {
  void *memory = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(memory); }

  uint8_t *of(size_t bytes) {
    if (bytes > size) {
      std::free(memory);
      size = 0;
      memory = std::aligned_alloc(64, bytes);
      if (memory) size = bytes, std::memset(memory, 0, bytes);
    }
    return static_cast<uint8_t *>(memory);
  }
};

thread_local Scratch scratch;

// Where an item's data lie in it.
struct Workplace {
  uint8_t *copy;           // (groups of an item, rows, ...), see above
  int32_t *pixels;         // (groups, rows, row_pixels) sums of channels; with a factor of 2 only
  int32_t *windows;        // (lines, line_room) sums of those
  Line *lines;
  int32_t *sums[2];        // (32 pixels, 32 outputs) each
  int32_t *some;           // the same of some steps; of thirds only
  int64_t *steps;          // where each begins, from a line's `pixels` on
  int64_t *pixel, *image;  // `Places`, by a pixel's number in its line

  // Lays them out from `start` on, if that is not null; returns how many bytes they take.
  size_t lay_out(const Call &call, const Plan &plan, uint8_t *start) {
    size_t at = 0;
    const auto take = [start, &at](auto *&pointer, int64_t count) {
      if (start) pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(start + at);
      at += static_cast<size_t>(over(count * static_cast<int64_t>(sizeof *pointer), 64) * 64);
    };
    const int64_t rows = plan.of_set * plan.group_rows, count = plan.of_set * plan.rows, wide = call.factor == 2;
    take(copy, (plan.direct ? 0 : rows * plan.row_bytes) + 2 * kLanes * plan.stride);  // tiles reach beyond lines
    take(pixels, wide * rows * plan.row_pixels);
    take(windows, wide * count * plan.line_room);
    take(lines, count + plan.direct);
    take(sums[0], 4 * kLanes * kLanes);
    take(sums[1], 4 * kLanes * kLanes);
    take(some, call.thirds() * 4 * kLanes * kLanes);
    take(steps, plan.steps);
    take(pixel, plan.line);
    take(image, plan.line);
    return at;
  }
};

void number_pixels(const Call &call, const Plan &plan, Workplace &work) {
  for (int64_t number = 0; number < plan.line; ++number) {
    work.image[number] = number % plan.together;
    work.pixel[number] = number % plan.together * call.down * call.across + number / plan.together;
  }
  int64_t step = 0;
  for (int64_t y = 0; y < call.kernel_y; ++y) {
    for (int64_t x = 0; x < plan.places_x; ++x) {
      const int64_t column = column_of(call, plan, x);
      for (int64_t slab = 0; slab < plan.slabs; ++slab) {
        work.steps[step++] = y * call.dilation_y * plan.row_bytes + slab * plan.slab_bytes +
                             column * plan.together * plan.slab;
      }
    }
  }
}

bool is_read(const Call &call, int64_t row) {  // of a strip, by any row of a window
  for (int64_t y = 0; y < call.kernel_y; ++y) {
    const int64_t top = row - y * call.dilation_y;
    if (top >= 0 && top % call.stride_y == 0) return true;
  }
  return false;
}

void sum_windows(const Call &call, const Plan &plan, const Line &line, const int32_t *pixels, int32_t *sums) {
  const int64_t of_row = plan.places_x * plan.slabs;
  std::memset(sums, 0, static_cast<size_t>(plan.line) * sizeof *sums);
  for (int64_t y = line.first / of_row; y < line.last / of_row; ++y) {
    for (int64_t x = 0; x < plan.places_x; ++x) {
      const int64_t column = column_of(call, plan, x);
      const int32_t *from = pixels + y * call.dilation_y * plan.row_pixels + column * plan.together;
      for (int64_t i = 0; i < plan.line; ++i) sums[i] += from[i];
    }
  }
}

// Copies what an item reads and describes its lines; returns how many.
int64_t prepare(const Call &call, const Plan &plan, int64_t set, int64_t strip, Workplace &work) {
  const int64_t first_row = strip * plan.rows, rows = least(plan.rows, call.down - first_row);
  const int64_t of_row = plan.places_x * plan.slabs;
  int64_t lines = 0;
  for (int64_t of_set = 0; of_set < least(plan.of_set, plan.groups - set * plan.of_set); ++of_set) {
    const int64_t image = (set * plan.of_set + of_set) * plan.together;
    const int64_t images = least(plan.together, call.samples - image);
    uint8_t *copy = work.copy + of_set * plan.group_rows * plan.row_bytes;
    int32_t *pixels = work.pixels + of_set * plan.group_rows * plan.row_pixels;
    for (int64_t row = 0; row < rows_for(call, rows); ++row) {
      const int64_t y = first_row * call.stride_y - call.padding_y + row;
      if (y < 0 || y >= call.height || !is_read(call, row)) continue;
      uint8_t *to = copy + row * plan.row_bytes;
      for (int64_t i = 0; i < images; ++i) {
        const uint8_t *from = call.x + ((image + i) * call.height + y) * call.width * call.pixel();
        uint8_t *first = to + i * plan.slab;
        if (call.thirds()) {
          copy_row<true>(call, plan, from, first);
        } else {
          for (int64_t half = 0; half < call.parts; ++half) {
            copy_row<false>(call, plan, from + half * call.channels, first + half * plan.part);
          }
        }
      }
      if (call.factor == 2) sum_row(call, plan, to, pixels + row * plan.row_pixels);
    }
    for (int64_t row = 0; row < rows; ++row, ++lines) {
      const int64_t top = (first_row + row) * call.stride_y - call.padding_y;  // where its windows begin
      const int64_t begin = top >= 0 ? 0 : least(call.kernel_y, over(-top, call.dilation_y));
      const int64_t inside = top >= call.height ? 0 : (call.height - 1 - top) / call.dilation_y + 1;
      const int64_t end = most(begin, least(call.kernel_y, inside));
      Line &line = work.lines[lines];
      line.pixels = copy + row * call.stride_y * plan.row_bytes;
      line.first = begin * of_row;
      line.last = end * of_row;
      line.start = (image * call.down + first_row + row) * call.across;
      line.images = images;
      line.count = plan.line;
      line.windows = nullptr;
      if (call.factor == 2) {
        int32_t *windows = work.windows + lines * plan.line_room;
        sum_windows(call, plan, line, pixels + row * call.stride_y * plan.row_pixels, windows);
        line.windows = windows;
      }
    }
  }
  return lines;
}

// The same where nothing is copied but what would not fill the last tiles, which read beyond the last image.
int64_t prepare_directly(const Call &call, const Plan &plan, int64_t set, Workplace &work) {
  const int64_t pixels = call.samples * call.down * call.across, start = set * plan.line;
  const int64_t all = least(plan.line, pixels - start), rest = all % (2 * kLanes);
  const uint8_t *from = call.x + start * plan.stride;
  for (int64_t i = 0; call.factor == 2 && i < all; ++i) {
    work.windows[i] = sum_of(from + i * plan.stride, call.channels);
    if (call.parts == 2) work.windows[i] += 256 * sum_of(from + i * plan.stride + plan.part, call.channels);
  }
  work.lines[0] = Line{from, 0, plan.steps, start, 1, all - rest, work.windows};
  if (!rest) return 1;
  std::memcpy(work.copy, from + (all - rest) * plan.stride, static_cast<size_t>(rest * plan.stride));
  work.lines[1] = Line{work.copy, 0, plan.steps, start + all - rest, 1, rest, work.windows + (all - rest)};
  return 2;
}

template <int ROWS, int COLUMNS>
INLINE void store_sums([[maybe_unused]] Tiles &tiles, int32_t *sums) {
  const int64_t row = 2 * kLanes * static_cast<int64_t>(sizeof *sums);
  TILE_STORE(tiles, 0, sums, row);
  if (COLUMNS > 1) TILE_STORE(tiles, 1, sums + kLanes, row);
  if (ROWS > 1) TILE_STORE(tiles, 2, sums + 2 * kLanes * kLanes, row);
  if (ROWS > 1 && COLUMNS > 1) TILE_STORE(tiles, 3, sums + 2 * kLanes * kLanes + kLanes, row);
}

template <int ROWS, int COLUMNS>
INLINE void clear_sums([[maybe_unused]] Tiles &tiles) {
  TILE_ZERO(tiles, 0);
  if (COLUMNS > 1) TILE_ZERO(tiles, 1);
  if (ROWS > 1) TILE_ZERO(tiles, 2);
  if (ROWS > 1 && COLUMNS > 1) TILE_ZERO(tiles, 3);
}

// Stores sums of some steps: as they are, or added to what is stored, by way of `some`.
template <int ROWS, int COLUMNS>
INLINE void keep_floats([[maybe_unused]] Tiles &tiles, int32_t *sums, int32_t *some, bool first) {
  store_sums<ROWS, COLUMNS>(tiles, first ? sums : some);
  if (first) return;
  for (int64_t row = 0; row < ROWS * kLanes; ++row) {
    for (int64_t column = 0; column < COLUMNS; ++column) {
      const int64_t at = (2 * row + column) * kLanes;
      stored<true>(sums + at, loaded<Floats, true>(sums + at, kLanes) + loaded<Floats, true>(some + at, kLanes), kLanes);
    }
  }
}

// Multiplies ROWS tiles of pixels by COLUMNS of weights, step by step, and goes on with what came before in between.
// Of halves, both are the low and the high one of the same, so that what is low has no sign.
template <int PARTS, int ROWS, int COLUMNS>
INLINE void multiply([[maybe_unused]] Tiles &tiles, const Plan &plan, const Line &line, const uint8_t *pixels,
                     const Workplace &work, const int8_t *weights, int32_t *sums, const Call &call,
                     const Places &places, Finish finish, Finishing &before) {
  constexpr bool HALVES = PARTS == 2, THIRDS = PARTS == 3;
  const int64_t stride = plan.stride, tile = kLanes * plan.slab, part = plan.steps * tile, of_pixel = plan.part;
  const int64_t second = HALVES ? of_pixel : kLanes * stride, block = THIRDS ? 3 * part : part;
  const int64_t count = line.last - line.first;
  const int64_t share = count ? over(before.end - before.next, count) : 0;
  clear_sums<ROWS, COLUMNS>(tiles);
#define LOAD_PIXELS(number)                                                                           \
  do {                                                                                                \
    TILE_LOAD(tiles, 4, from + (number)*of_pixel, stride);                                            \
    if (ROWS > 1) TILE_LOAD(tiles, 5, from + (number)*of_pixel + second, stride);                     \
  } while (false)
#define LOAD_WEIGHTS(number)                                                                          \
  do {                                                                                                \
    TILE_LOAD(tiles, 6, at + (number)*part, 64);                                                      \
    if (COLUMNS > 1) TILE_LOAD(tiles, 7, at + (number)*part + block, 64);                             \
  } while (false)
#define MULTIPLY_FLOATS()                                                                             \
  do {                                                                                                \
    TILE_MULTIPLY_FLOATS(tiles, 0, 4, 6);                                                             \
    if (COLUMNS > 1) TILE_MULTIPLY_FLOATS(tiles, 1, 4, 7);                                            \
    if (ROWS > 1) TILE_MULTIPLY_FLOATS(tiles, 2, 5, 6);                                               \
    if (ROWS > 1 && COLUMNS > 1) TILE_MULTIPLY_FLOATS(tiles, 3, 5, 7);                                \
  } while (false)
  const int8_t *at = weights + line.first * tile;
  for (int64_t step = line.first; step < line.last; ++step, at += tile) {
    const uint8_t *from = pixels + work.steps[step];
    const int64_t done = step - line.first;
    if (THIRDS && done && done % kStepsOfFloats == 0) {
      keep_floats<ROWS, COLUMNS>(tiles, sums, work.some, done == kStepsOfFloats);
      clear_sums<ROWS, COLUMNS>(tiles);
    }
    if (THIRDS) {  // 0: high, 1: middle, 2: low; in an order that loads few tiles twice, and ends with what is largest
      LOAD_PIXELS(2);
      LOAD_WEIGHTS(0);
      MULTIPLY_FLOATS();
      LOAD_PIXELS(1);
      MULTIPLY_FLOATS();
      LOAD_WEIGHTS(1);
      MULTIPLY_FLOATS();
      LOAD_PIXELS(0);
      MULTIPLY_FLOATS();
      LOAD_WEIGHTS(2);
      MULTIPLY_FLOATS();
      LOAD_WEIGHTS(0);
      MULTIPLY_FLOATS();
      finish(call, places, before, share);
      continue;
    }
    TILE_LOAD(tiles, 4, from, stride);
    TILE_LOAD(tiles, 6, at, 64);
    if (HALVES) {
      TILE_MULTIPLY_LOW(tiles, 0, 4, 6);
    } else {
      TILE_MULTIPLY(tiles, 0, 4, 6);
    }
    if (COLUMNS > 1) {
      TILE_LOAD(tiles, 7, at + block, 64);
      TILE_MULTIPLY(tiles, 1, 4, 7);
    }
    if (ROWS > 1) {
      TILE_LOAD(tiles, 5, from + second, stride);
      if (HALVES) {
        TILE_MULTIPLY_LOW(tiles, 2, 5, 6);
      } else {
        TILE_MULTIPLY(tiles, 2, 5, 6);
      }
    }
    if (ROWS > 1 && COLUMNS > 1) TILE_MULTIPLY(tiles, 3, 5, 7);
    finish(call, places, before, share);
  }
#undef LOAD_PIXELS
#undef LOAD_WEIGHTS
#undef MULTIPLY_FLOATS
  finish(call, places, before, before.end - before.next);
  if (THIRDS) {
    keep_floats<ROWS, COLUMNS>(tiles, sums, work.some, count <= kStepsOfFloats);
  } else {
    store_sums<ROWS, COLUMNS>(tiles, sums);
  }
}

// The same for up to two tiles of pixels and of weights: as many as there are.
template <int PARTS, typename... Arguments>
INLINE void multiply_some(bool two_rows, bool two_columns, Arguments &&...arguments) {
  if (two_rows && two_columns) {
    multiply<PARTS, 2, 2>(arguments...);
  } else if (two_rows) {
    multiply<PARTS, 2, 1>(arguments...);
  } else if (two_columns) {
    multiply<PARTS, 1, 2>(arguments...);
  } else {
    multiply<PARTS, 1, 1>(arguments...);
  }
}

void run_item(const Call &call, const Plan &plan, int64_t item, Tiles &tiles, Workplace &work, Finish finish) {
  const int64_t chunk = item % plan.chunks, strip = item / plan.chunks % plan.strips;
  const int64_t set = item / plan.chunks / plan.strips;
  const int64_t lines = plan.direct ? prepare_directly(call, plan, set, work) : prepare(call, plan, set, strip, work);
  const Places places{work.pixel, work.image};
  const bool halves = call.parts == 2;
  const int64_t step = halves ? kLanes : 2 * kLanes;
  const int64_t of_block = (halves ? 1 : call.parts) * plan.steps * kLanes * plan.slab;  // bytes of weights
  Finishing before{};
  int side = 0;
  __asm__ volatile("" ::: "memory");  // compilers do not know that tiles read memory
  for (int64_t turn = plan.turns * chunk / plan.chunks; turn < plan.turns * (chunk + 1) / plan.chunks; ++turn) {
    const int8_t *weights = call.weights + 2 * turn * of_block;
    const int64_t columns = halves ? 1 : least(2, plan.blocks - 2 * turn);
    for (const Line *line = work.lines; line < work.lines + lines; ++line) {
      for (int64_t from = 0; from < line->count; from += step) {
        const uint8_t *pixels = line->pixels + from * plan.stride;
        int32_t *sums = work.sums[side ^= 1];
        const bool two = line->count - from > kLanes;
        if (halves) {
          multiply<2, 2, 2>(tiles, plan, *line, pixels, work, weights, sums, call, places, finish, before);
        } else if (call.thirds()) {
          multiply_some<3>(two, columns == 2, tiles, plan, *line, pixels, work, weights, sums, call, places, finish,
                           before);
        } else {
          multiply_some<1>(two, columns == 2, tiles, plan, *line, pixels, work, weights, sums, call, places, finish,
                           before);
        }
        // As many pixels at a time as outputs.
        before = Finishing{sums, 0, least(step, line->count - from), from, turn * step, columns, line};
      }
    }
  }
  finish(call, places, before, before.end - before.next);
}

struct Job {
  const Call &call;
  const Plan &plan;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

// What every thread does: items, until there are none left.
void run(void *data) {
  Job &job = *static_cast<Job *>(data);
  const Call &call = job.call;
  const Plan &plan = job.plan;
  const int64_t items = plan.sets * plan.strips * plan.chunks;
  int64_t item = job.next.fetch_add(1);
  if (item >= items) return;
  Workplace work{};
  uint8_t *memory = scratch.of(work.lay_out(call, plan, nullptr));
  if (!memory) {
    job.failed = true;
    return;
  }
  work.lay_out(call, plan, memory);
  number_pixels(call, plan, work);
  const Finish finish = finish_of(call);
  Tiles tiles(plan.slab);
  for (; item < items; item = job.next.fetch_add(1)) run_item(call, plan, item, tiles, work, finish);
  _mm_sfence();  // what was streamed is there for other threads
}

}  // namespace

extern "C" {

// Starts threads: OpenMP's, as compilers call it; torch's own, so that there are no others beside them.
using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);

// Returns 0; 1 where there is not enough memory.
int qbw_convolve(const Call *call, Parallel parallel) {
  if (!(call->samples && call->down && call->across && call->outputs)) return 0;
  const Plan plan = plan_of(*call);
  Job job{*call, plan};
  if (call->threads > 1) {
    parallel(run, &job, static_cast<unsigned>(call->threads), 0);
  } else {
    run(&job);
  }
  return job.failed;
}

int64_t qbw_call_bytes() { return sizeof(Call); }

// Asks the system for the use of tiles in this process; returns 0 where it is granted.
int qbw_allow_tiles() {
#ifdef QBW_TILES
  return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0 ? 0 : 1;
#else
  return 0;
#endif
}
}
