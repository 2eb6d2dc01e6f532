// Instruction sets: which ones this build has, and which one this processor gets.
//
// A file named *_simd.cpp is compiled once per instruction set, with WR_ISA = v2, v3, v4 (x86-64 levels) or, elsewhere, once
// with WR_ISA = baseline. It exports one function, named by WR_ISA_NAME(transport_kernels) -> transport_kernels_v3, that
// returns its table of function pointers; callers pick from WR_ISA_TABLE(transport_kernels) by choose_isa.
#pragma once

#define WR_ISA_PASTE2(name, isa) name##_##isa
#define WR_ISA_PASTE(name, isa) WR_ISA_PASTE2(name, isa)
#define WR_ISA_NAME(name) WR_ISA_PASTE(name, WR_ISA)

#if defined(__x86_64__)
#define WR_ISA_DECLARE(Type, name) \
  const Type* name##_v2();         \
  const Type* name##_v3();         \
  const Type* name##_v4()
#define WR_ISA_TABLE(name) {name##_v2, name##_v3, name##_v4}
#else
#define WR_ISA_DECLARE(Type, name) const Type* name##_baseline()
#define WR_ISA_TABLE(name) {name##_baseline}
#endif

namespace worldr1 {

// Index into a WR_ISA_TABLE of the best instruction set this processor runs, or of the one named by `level` ("x86-64-v2",
// ...; "" is the best). Throws std::runtime_error when the processor, or this build, lacks it.
int choose_isa(const char* level);

// Its name.
const char* isa_name(int index);

}  // namespace worldr1
