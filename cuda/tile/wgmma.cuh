// Warpgroup matrix product m64nNk16 (sm_90a), 16-bit inputs, float32 accumulation, and the fences
// that keep its accumulators in registers. One warpgroup is 128 threads; the accumulator of a
// thread holds N / 2 values:
//   d[8 * c + 0, 1] row lane / 4,     columns 16 * c + 2 * (lane % 4) + 0, 1
//   d[8 * c + 2, 3] row lane / 4 + 8, the same columns
//   d[8 * c + 4..7] the same rows, columns + 8
// which is also the register layout of operand A for k block c: P needs no shuffle between the two
// products.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flash_gqa::cuda {

// Shared-memory matrix descriptor, 128-byte swizzle; address and strides in units of 16 bytes, so
// that advance() is one addition.
// K-major operands (Q, K): rows of 128 bytes, 8 of them 1024 bytes apart; leading_bytes is unused.
// N-major operand (V): leading_bytes from one 64-column half to the next, 8 key rows 1024 bytes
// apart.
__device__ __forceinline__ uint64_t smem_descriptor(uint32_t address, uint32_t leading_bytes) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         (static_cast<uint64_t>(leading_bytes >> 4) << 16) |
         (static_cast<uint64_t>(1024 >> 4) << 32) | (static_cast<uint64_t>(1) << 62);
}
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// Orders register writes before the products that read or accumulate into them.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// The compiler does not know that a product still writes `d`: nothing may read it before this
// point.
template <int kCount>
__device__ __forceinline__ void keep_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void keep_registers(uint32_t (&p)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+r"(p[i][0]), "+r"(p[i][1]), "+r"(p[i][2]), "+r"(p[i][3])::"memory");
  }
}

template <typename T, int kN>
struct Wgmma;

// Operand lists: accumulators come first, so that their numbers do not depend on N.
#define GQA_ACC_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define GQA_ACC_16 GQA_ACC_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define GQA_ACC_24 GQA_ACC_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define GQA_ACC_32 GQA_ACC_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define GQA_ACC_40 GQA_ACC_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define GQA_ACC_48 GQA_ACC_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define GQA_ACC_56 GQA_ACC_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define GQA_ACC_64 GQA_ACC_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define GQA_ACC_72 GQA_ACC_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define GQA_ACC_80 GQA_ACC_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define GQA_ACC_88 GQA_ACC_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define GQA_ACC_96 GQA_ACC_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define GQA_ACC_104 GQA_ACC_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define GQA_ACC_112 GQA_ACC_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define GQA_ACC_120 GQA_ACC_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define GQA_ACC_128 GQA_ACC_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define GQA_D8(i)                                                                             \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define GQA_D_8 GQA_D8(0)
#define GQA_D_16 GQA_D_8, GQA_D8(8)
#define GQA_D_24 GQA_D_16, GQA_D8(16)
#define GQA_D_32 GQA_D_24, GQA_D8(24)
#define GQA_D_40 GQA_D_32, GQA_D8(32)
#define GQA_D_48 GQA_D_40, GQA_D8(40)
#define GQA_D_56 GQA_D_48, GQA_D8(48)
#define GQA_D_64 GQA_D_56, GQA_D8(56)
#define GQA_D_72 GQA_D_64, GQA_D8(64)
#define GQA_D_80 GQA_D_72, GQA_D8(72)
#define GQA_D_88 GQA_D_80, GQA_D8(80)
#define GQA_D_96 GQA_D_88, GQA_D8(88)
#define GQA_D_104 GQA_D_96, GQA_D8(96)
#define GQA_D_112 GQA_D_104, GQA_D8(104)
#define GQA_D_120 GQA_D_112, GQA_D8(112)
#define GQA_D_128 GQA_D_120, GQA_D8(120)

// ss: d (+)= A * B^T, both K-major in shared memory. rs: d += A * B, A in registers, B N-major in
// shared memory.
#define GQA_WGMMA(TYPE, PTX_TYPE, N, COUNT, X0, X1, X2, X3, X4)                            \
  template <>                                                                              \
  struct Wgmma<TYPE, N> {                                                                  \
    static __device__ __forceinline__ void ss(float (&d)[COUNT], uint64_t a, uint64_t b,   \
                                              int keep) {                                  \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " X2                                  \
                   ", 0;\n"                                                                \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX_TYPE "." PTX_TYPE \
                   " {" GQA_ACC_##COUNT "}, " X0 ", " X1 ", p, 1, 1, 0, 0;\n}\n"           \
                   : GQA_D_##COUNT                                                         \
                   : "l"(a), "l"(b), "r"(keep));                                           \
    }                                                                                      \
    static __device__ __forceinline__ void rs(float (&d)[COUNT], const uint32_t (&a)[4],   \
                                              uint64_t b) {                                \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX_TYPE "." PTX_TYPE \
                   " {" GQA_ACC_##COUNT "}, {" X0 ", " X1 ", " X2 ", " X3 "}, " X4         \
                                        ", 1, 1, 1, 1;\n"                                  \
                   : GQA_D_##COUNT                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                  \
    }                                                                                      \
  };

#define GQA_WGMMA_BOTH(N, COUNT, X0, X1, X2, X3, X4)             \
  GQA_WGMMA(__nv_bfloat16, "bf16", N, COUNT, X0, X1, X2, X3, X4) \
  GQA_WGMMA(__half, "f16", N, COUNT, X0, X1, X2, X3, X4)

GQA_WGMMA_BOTH(64, 32, "%32", "%33", "%34", "%35", "%36")
GQA_WGMMA_BOTH(80, 40, "%40", "%41", "%42", "%43", "%44")
GQA_WGMMA_BOTH(96, 48, "%48", "%49", "%50", "%51", "%52")
GQA_WGMMA_BOTH(112, 56, "%56", "%57", "%58", "%59", "%60")
GQA_WGMMA_BOTH(128, 64, "%64", "%65", "%66", "%67", "%68")
GQA_WGMMA_BOTH(192, 96, "%96", "%97", "%98", "%99", "%100")
GQA_WGMMA_BOTH(256, 128, "%128", "%129", "%130", "%131", "%132")

#undef GQA_WGMMA_BOTH
#undef GQA_WGMMA
#undef GQA_D8

}  // namespace flash_gqa::cuda
