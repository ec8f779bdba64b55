//! What an execution engine is: the traits, exits and capabilities, and the conformance suite.
