//! What is done part by part, whatever becomes of the others.

use agent_wire::Part;

/// What has been tried so far.
#[derive(Default)]
pub(crate) struct Parts(Vec<Part>);

impl Parts {
    /// Tries one more; it says what it did, or why it could not.
    pub(crate) fn part(&mut self, name: &str, done: Result<String, impl std::fmt::Display>) {
        let (ok, said) = match done {
            Ok(said) => (true, said),
            Err(error) => (false, error.to_string()),
        };
        self.0.push(Part { part: name.to_owned(), ok, said });
    }

    pub(crate) fn done(self) -> Vec<Part> {
        self.0
    }
}
