// What compute-sanitizer's initcheck sees of memory that bulk copies store (cp.async.bulk and TMA; cuBLASLt's Hopper
// kernels store through them): not all of it. It then calls memory uninitialised that holds the right values, so its
// reports about cuBLASLt's results say nothing, and initcheck is run with FLASH_GQA_CUBLASLT=off. While the tool
// reports this program, which reads nothing but what it wrote, that is so.
//
//   nvcc -gencode=arch=compute_90a,code=sm_90a -o bulk_store test/gpu/bulk_store.cu
//   compute-sanitizer --tool initcheck ./bulk_store
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

__global__ void store(int* out) {
  __shared__ alignas(128) int tile[32];
  tile[threadIdx.x] = threadIdx.x;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x != 0) return;
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(tile));
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 128;" ::"l"(out), "r"(from)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;");
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

int main() {
  int* stored;
  int values[32], sum = 0;
  cudaMalloc(&stored, sizeof values);
  store<<<1, 32>>>(stored);
  cudaMemcpy(values, stored, sizeof values, cudaMemcpyDeviceToHost);
  for (const int value : values) sum += value;
  std::printf("sum %d, %s\n", sum, cudaGetErrorString(cudaGetLastError()));
  return sum == 31 * 32 / 2 ? 0 : 1;
}
