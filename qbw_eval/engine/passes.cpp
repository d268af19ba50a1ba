// What lies between convolutions: element by element, one pass over memory each (`compiled_passes.py` compiles this).
//
// Every pass is what `passes.py` says, each operation in float32 rounded by itself, in the same order; nothing is
// contracted (-ffp-contract=off). What is NaN stays NaN, and is level 0. Of a minimum or a maximum of two zeros plain
// torch returns the second, but the first in what is left over behind its last whole vector; here it is always the
// second.
//
// Loops are plain, so that compilers make vectors of them: a comparison is written as the instruction that takes the
// second of two operands wherever one is NaN.

#include <atomic>
#include <cmath>
#include <cstdint>

namespace {

constexpr int64_t kFewElements = 1 << 14;  // a thread's: for fewer, waking it takes longer than it saves
constexpr int64_t kItems = 4;              // a thread's: what one is late with, since something else runs, others do

// `compiled_passes._Call` is the same. Numbers are pointed to as well; values of a row are adjacent.
struct Call {
  const float *x, *low, *other, *scale, *bias;
  const float *unit;   // a clipping value, a step, or the factor between x (high) and low
  const float *bound;  // the largest level, or the least value
  void *out;           // contiguous
  int64_t rows, columns;
  int64_t x_stride, low_stride, other_stride;  // from row to row
  int64_t low_columns;                         // 1, or as many as there are
  int64_t threads;
};

enum Pass : int64_t {  // `compiled_passes._KINDS`
  kLevelsByClipping,
  kLevelsByStep,
  kHalvesByClipping,
  kHalvesByStep,
  kValuesByClipping,
  kValuesByStep,
  kAdded,
  kCombined,
  kCombinedAndAdded,
  kCombinedLevels,
};

constexpr bool clips(Pass pass) {
  return pass == kLevelsByClipping || pass == kHalvesByClipping || pass == kValuesByClipping;
}
constexpr bool combines(Pass pass) { return pass >= kCombined; }
constexpr bool adds(Pass pass) { return pass == kAdded || pass == kCombinedAndAdded; }
constexpr bool makes_halves(Pass pass) { return pass == kHalvesByClipping || pass == kHalvesByStep; }
constexpr bool makes_values(Pass pass) { return pass >= kValuesByClipping && pass != kCombinedLevels; }

inline float at_least(float bound, float x) { return bound > x ? bound : x; }
inline float at_most(float bound, float x) { return bound < x ? bound : x; }

// Writes one row; or, where a pass cares for no columns, as many elements from there on.
template <Pass pass, bool one_low>
void write(const Call &call, int64_t row, int64_t columns) {
  const float *x = call.x + row * call.x_stride;
  const float *low = combines(pass) ? call.low + row * call.low_stride : nullptr;
  const float *other = adds(pass) ? call.other + row * call.other_stride : nullptr;
  const float *scale = call.scale, *bias = call.bias;
  const float unit = combines(pass) || !adds(pass) ? *call.unit : 0.0f, bound = *call.bound;
  const float first_low = one_low ? *low : 0.0f;
  const float zero = bound == 0.0f ? 0.0f : -0.0f;  // added, it makes 0 of -0 where the least is 0, else nothing
  const int64_t start = row * call.columns;
  float *values = makes_values(pass) ? static_cast<float *>(call.out) + start : nullptr;
  uint8_t *bytes = static_cast<uint8_t *>(call.out) + start * (makes_halves(pass) ? 2 : 1);
  uint8_t *high_bytes = bytes + columns;

#pragma GCC ivdep  // what is written is nothing that is read
  for (int64_t i = 0; i < columns; ++i) {
    float value = x[i];
    if constexpr (combines(pass)) value = (value * unit + (one_low ? first_low : low[i])) * scale[i] + bias[i];
    if constexpr (adds(pass)) value = value + other[i];
    if constexpr (makes_values(pass) && (combines(pass) || adds(pass))) {
      values[i] = at_least(bound, value) + zero;
      continue;
    }
    if constexpr (clips(pass)) {
      value = std::rint(at_most(unit, at_least(0.0f, value)) * bound / unit);
    } else {
      if constexpr (!combines(pass)) value = value / unit;
      value = std::rint(at_most(bound, at_least(0.0f, value)));
    }
    if constexpr (makes_values(pass)) {
      values[i] = clips(pass) ? value * unit / bound : value * unit;
    } else {
      const int32_t level = static_cast<int32_t>(value);
      bytes[i] = static_cast<uint8_t>(level);
      if constexpr (makes_halves(pass)) high_bytes[i] = static_cast<uint8_t>(level >> 8);
    }
  }
}

// Writes rows begin to end.
template <Pass pass>
void write_rows(const Call &call, int64_t begin, int64_t end) {
  const bool adjacent = call.x_stride == call.columns && (!adds(pass) || call.other_stride == call.columns);
  if (adjacent && !combines(pass) && !makes_halves(pass)) {
    write<pass, false>(call, begin, (end - begin) * call.columns);
  } else if (combines(pass) && call.low_columns == 1) {
    for (int64_t row = begin; row < end; ++row) write<pass, combines(pass)>(call, row, call.columns);
  } else {
    for (int64_t row = begin; row < end; ++row) write<pass, false>(call, row, call.columns);
  }
}

using Writer = void (*)(const Call &, int64_t, int64_t);

constexpr Writer kWriters[] = {
    write_rows<kLevelsByClipping>, write_rows<kLevelsByStep>,     write_rows<kHalvesByClipping>, write_rows<kHalvesByStep>,
    write_rows<kValuesByClipping>, write_rows<kValuesByStep>,     write_rows<kAdded>,            write_rows<kCombined>,
    write_rows<kCombinedAndAdded>, write_rows<kCombinedLevels>,
};

struct Job {
  const Call &call;
  Writer writer;
  int64_t items;
  std::atomic<int64_t> next{0};
};

// What every thread does: items, until there are none left.
void run(void *data) {
  Job &job = *static_cast<Job *>(data);
  const int64_t rows = job.call.rows;
  for (int64_t item; (item = job.next.fetch_add(1)) < job.items;) {
    job.writer(job.call, rows * item / job.items, rows * (item + 1) / job.items);
  }
}

}  // namespace

extern "C" {

// Starts threads: OpenMP's, as compilers call it; torch's own, so that there are no others beside them.
using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);

// Returns 0; 1 for a bound that the loops above do not know: nothing is written then.
int qbw_pass(int64_t pass, const Call *call, Parallel parallel) {
  const float bound = *call->bound;
  const bool values = makes_values(static_cast<Pass>(pass)), rounds = pass < kAdded || pass == kCombinedLevels;
  const float most = makes_halves(static_cast<Pass>(pass)) ? 65535.0f : 255.0f;
  if (rounds ? !(bound > 0.0f) || (!values && bound > most) : bound != bound || (bound == 0.0f && std::signbit(bound))) {
    return 1;
  }
  const int64_t elements = call->rows * call->columns;
  if (!elements) return 0;
  int64_t threads = elements / kFewElements;
  threads = threads < call->threads ? threads : call->threads;
  Job job{*call, kWriters[pass], threads > 1 ? threads * kItems : 1};
  if (threads > 1) {
    parallel(run, &job, static_cast<unsigned>(threads), 0);
  } else {
    run(&job);
  }
  return 0;
}

int64_t qbw_call_bytes() { return sizeof(Call); }
}
