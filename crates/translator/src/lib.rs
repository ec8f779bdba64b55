//! x86-64 code: decode, blocks, and the interpreter that is the oracle.
