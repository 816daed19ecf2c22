// Marks functions that run on the CPU and on the GPU alike, and loops that the GPU's code must not have as loops.
#pragma once

#if defined(__CUDACC__)
#define CAST_HOST_DEVICE __host__ __device__
#define CAST_UNROLL _Pragma("unroll")
#else
#define CAST_HOST_DEVICE
#define CAST_UNROLL
#endif
