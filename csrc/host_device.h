// Marks functions that run on the CPU and on the GPU alike, loops that the GPU's code must not have as loops, and some
// that it should: unrolled they would take registers that are short.
#pragma once

#if defined(__CUDACC__)
#define CAST_HOST_DEVICE __host__ __device__
#define CAST_UNROLL _Pragma("unroll")
#define CAST_KEEP_LOOP _Pragma("unroll 1")
#else
#define CAST_HOST_DEVICE
#define CAST_UNROLL
#define CAST_KEEP_LOOP
#endif
