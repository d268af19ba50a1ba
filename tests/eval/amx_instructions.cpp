// AMX's instructions, one by one, on a CPU that has none: each is an illegal instruction there, and a handler of the
// signal does what Intel's manual says (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2). The
// nine that `amx.cpp` uses, and no others; whatever breaks a rule of the manual ends the process.

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>

namespace {

struct Config {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64, "the manual's table 3-8");

thread_local Config config;
thread_local uint8_t tiles[8][16][64];
struct sigaction before;
long executed;

[[noreturn]] void fail(const char *why) {
  std::fprintf(stderr, "amx_instructions.cpp: %s\n", why);
  std::_Exit(70);
}

void require(bool rule, const char *why) {
  if (!rule) fail(why);
}

void load_config(const void *from) {
  std::memcpy(&config, from, sizeof config);
  require(config.palette == 1 && config.start == 0, "a configuration is not of palette 1");
  for (uint8_t byte : config.reserved) require(byte == 0, "reserved bytes are not 0");
  for (int tile = 0; tile < 16; ++tile) {
    require(config.bytes[tile] <= 64 && config.rows[tile] <= 16, "a tile is larger than tiles are");
    require((config.bytes[tile] == 0) == (config.rows[tile] == 0), "half a tile is configured");
    require(tile < 8 || config.rows[tile] == 0, "there are eight tiles");
  }
  std::memset(tiles, 0, sizeof tiles);
}

// Two tiles and one of sums.
void check(int sums, int left, int right) {
  require(sums != left && sums != right && left != right, "a tile is used twice");
  require(config.bytes[left] == 4 * config.rows[right], "inner sizes differ");
  require(config.rows[sums] == config.rows[left] && config.bytes[sums] == config.bytes[right], "outer sizes differ");
}

float wide(const uint8_t *half) {
  uint32_t digits = static_cast<uint32_t>(half[0]) << 16 | static_cast<uint32_t>(half[1]) << 24;
  float value;
  std::memcpy(&value, &digits, sizeof value);
  return value;
}

// sums(m, n) += (sum over k of left(m, 2 k) * right(k, 2 n)) + (the same with 2 k + 1 and 2 n + 1), bfloat16 and float32
void multiply_floats(int sums, int left, int right) {
  check(sums, left, right);
  for (int m = 0; m < config.rows[sums]; ++m) {
    float row[16], even[16] = {}, odd[16] = {};
    std::memcpy(row, tiles[sums][m], sizeof row);
    for (int k = 0; k < config.bytes[left] / 4; ++k) {
      for (int n = 0; n < config.bytes[sums] / 4; ++n) {
        even[n] += wide(&tiles[left][m][4 * k]) * wide(&tiles[right][k][4 * n]);
        odd[n] += wide(&tiles[left][m][4 * k + 2]) * wide(&tiles[right][k][4 * n + 2]);
      }
    }
    for (int n = 0; n < 16; ++n) row[n] += even[n] + odd[n];
    std::memcpy(tiles[sums][m], row, sizeof row);
  }
}

// sums(m, n) += sum over i of unsigned left(m, 4 k + i) * right(k, 4 n + i), which has a sign or not
template <typename Right>
void multiply(int sums, int left, int right) {
  check(sums, left, right);
  for (int m = 0; m < config.rows[sums]; ++m) {
    int32_t row[16];
    std::memcpy(row, tiles[sums][m], sizeof row);
    for (int k = 0; k < config.bytes[left] / 4; ++k) {
      for (int n = 0; n < config.bytes[sums] / 4; ++n) {
        for (int i = 0; i < 4; ++i) {
          row[n] += tiles[left][m][4 * k + i] * static_cast<Right>(tiles[right][k][4 * n + i]);
        }
      }
    }
    std::memcpy(tiles[sums][m], row, sizeof row);
  }
}

int64_t value_of(const ucontext_t *context, int number) {
  static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context->uc_mcontext.gregs[order[number]];
}

void handle(int, siginfo_t *, void *data) {
  ucontext_t *context = static_cast<ucontext_t *>(data);
  greg_t &next = context->uc_mcontext.gregs[REG_RIP];
  const uint8_t *code = reinterpret_cast<const uint8_t *>(next);
  const bool vex = code[0] == 0xC4 && (code[1] & 31) == 2 && (code[2] & 0x84) == 0;  // map 0F38, W0, 128 bits
  if (!vex) {
    sigaction(SIGILL, &before, nullptr);  // somebody else's
    return;
  }
  const int prefix = code[2] & 3, second = ~(code[2] >> 3) & 15, operation = code[3], form = code[4];
  const int mode = form >> 6, reg = form >> 3 & 7, rm = form & 7;
  const int high_index = code[1] & 64 ? 0 : 8, high_base = code[1] & 32 ? 0 : 8;
  require(code[1] & 128, "there are eight tiles");
  const uint8_t *end = code + 5;
  int64_t base = 0, index = 0;
  if (mode != 3) {
    int number = rm + high_base;
    if (rm == 4) {
      const int sib = *end++;
      number = (sib & 7) + high_base;
      const int from = (sib >> 3 & 7) + high_index;
      if (from != 4) index = value_of(context, from) * (1 << (sib >> 6));
    }
    require(mode != 0 || (number & 7) != 5, "an address without a base");
    base = value_of(context, number);
    if (mode == 1) base += static_cast<int8_t>(*end++);
    if (mode == 2) {
      int32_t far;
      std::memcpy(&far, end, 4);
      base += far;
      end += 4;
    }
  }
  if (operation == 0x49 && prefix == 0 && mode != 3) {
    load_config(reinterpret_cast<const void *>(base + index));
  } else if (operation == 0x49 && prefix == 0 && form == 0xC0) {
    std::memset(&config, 0, sizeof config);
  } else if (operation == 0x49 && prefix == 3 && mode == 3 && rm == 0) {
    require(config.rows[reg], "a tile is not configured");
    std::memset(tiles[reg], 0, sizeof tiles[reg]);
  } else if (operation == 0x4B && (prefix == 3 || prefix == 2) && mode != 3 && rm == 4) {
    require(config.rows[reg], "a tile is not configured");
    for (int row = 0; row < config.rows[reg]; ++row) {
      void *at = reinterpret_cast<void *>(base + row * index);
      if (prefix == 3) std::memset(tiles[reg][row], 0, 64), std::memcpy(tiles[reg][row], at, config.bytes[reg]);
      if (prefix == 2) std::memcpy(at, tiles[reg][row], config.bytes[reg]);
    }
  } else if (operation == 0x5E && prefix <= 1 && mode == 3) {
    prefix ? multiply<int8_t>(reg, rm, second) : multiply<uint8_t>(reg, rm, second);
  } else if (operation == 0x5C && prefix == 2 && mode == 3) {
    multiply_floats(reg, rm, second);
  } else {
    fail("an instruction that is not AMX's, or not known here");
  }
  __atomic_fetch_add(&executed, 1, __ATOMIC_RELAXED);
  next = reinterpret_cast<greg_t>(end);
}

}  // namespace

extern "C" {

int emulate() {
  struct sigaction action {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGILL, &action, &before);
}

// Puts the handler back that was there before; returns how many instructions there were.
long stop() {
  sigaction(SIGILL, &before, nullptr);
  return executed;
}
}
