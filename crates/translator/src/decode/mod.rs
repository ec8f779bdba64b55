//! From bytes to [`Insn`]s: iced-x86 decodes, selectors choose handlers and lay out operands.
