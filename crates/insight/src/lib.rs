//! Facts about a guest's memory that the guest does not tell.
