//! A full x86-64 system CPU over the translator: MMU, exceptions, interrupt controllers, clocks.
