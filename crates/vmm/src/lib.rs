//! One virtual machine: configuration, plan, boot, run states, events.
