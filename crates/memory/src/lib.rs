//! Guest RAM: the frame table, sources of absent frames, access and write facts, device views.
