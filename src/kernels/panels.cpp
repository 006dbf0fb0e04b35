#include "kernels/panels.h"

#include <cstring>
#include <vector>

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace tandem::kernels {
namespace {

#if defined(__APPLE__) && defined(__aarch64__)
bool has_i8mm() {
  int has = 0;
  std::size_t bytes = sizeof has;
  return ::sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &bytes, nullptr, 0) == 0 && has != 0;
}
#elif defined(__aarch64__)
bool has_i8mm() { return (::getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
#endif

#if defined(__x86_64__)
// Whether the processor multiplies tiles of bfloat16 and the system lets this process
// (Documentation/arch/x86/xstate of Linux): their registers are more than it saves by default.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr unsigned bf16_bit = 1U << 22, tile_bit = 1U << 24;
  constexpr long request_permission = 0x1023, tile_data = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & bf16_bit) != 0 && (d & tile_bit) != 0 &&
         ::syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

// Fastest first.
std::vector<const PanelLoops*> loops_of_this_processor() {
  std::vector<const PanelLoops*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  if (avx512 && may_use_tiles()) found.insert(found.end(), {&panels_amx, &panels_amx_float32});
  if (avx512) found.push_back(&panels_avx512);
  const bool intel = __builtin_cpu_is("intel");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) {
    // Intel multiplies pairs of bfloat16 no faster than floats (Granite Rapids: 110 against 165 Gflop/s).
    found.insert(intel ? found.end() : found.begin(), &panels_avx512_bf16);
  }
  // F16C is older than AVX2.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(intel ? &panels_avx2_of_intel : &panels_avx2);
#elif defined(__APPLE__) && defined(__aarch64__)
  if (has_i8mm()) found.push_back(&panels_neon_i8mm);  // from M2 on
  found.push_back(&panels_neon);                       // every Apple silicon has it
#elif defined(__aarch64__)
  const bool dot_product = (::getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  if (dot_product && has_i8mm()) found.push_back(&panels_neon_i8mm);
  if (dot_product) found.push_back(&panels_neon);
#endif
  found.push_back(&panels_portable);
  return found;
}

}  // namespace

const PanelLoops* find_loops(const char* name) {
  static const auto all = loops_of_this_processor();
  if (!name) return all.front();
  for (const auto* loops : all) {
    if (std::strcmp(loops->name, name) == 0) return loops;
  }
  return nullptr;
}

}  // namespace tandem::kernels
