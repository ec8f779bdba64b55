//! SSE, AVX and x87: the host's own instruction, run from a generated thunk on loaded and stored state.
