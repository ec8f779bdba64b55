//! Wire types and the small HTTP protocol of the per-VM socket.
