// Clusters (blocks that run at the same time and read each other's shared memory), and launches that overlap the end
// of the launch before them (sm_90). Raw instructions, no policy.
#pragma once

#include <cstdint>

namespace flash_gqa::cuda::sm90 {

// Lets the next launch of the stream take the SMs that this one leaves, before all of this one is done.
__device__ __forceinline__ void launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
// Waits until the launches before are done and their writes are visible. Nothing that an earlier launch may write
// (or may still read, where it is written here) is touched before this.
__device__ __forceinline__ void wait_for_earlier_launches() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// A barrier of all threads of the cluster that have not exited.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ int32_t cluster_blocks() {
  uint32_t n;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
  return static_cast<int32_t>(n);
}

// The address, in block `rank` of the cluster, of what `address` is here.
__device__ __forceinline__ uint32_t peer_address(uint32_t address, int32_t rank) {
  uint32_t peer;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
  return peer;
}
__device__ __forceinline__ float4 load_peer_float4(uint32_t address) {
  float4 x;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ float2 load_peer_float2(uint32_t address) {
  float2 x;
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
               : "=f"(x.x), "=f"(x.y)
               : "r"(address)
               : "memory");
  return x;
}

}  // namespace flash_gqa::cuda::sm90
