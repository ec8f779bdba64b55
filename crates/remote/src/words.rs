//! The line in which either program says what failed.

const NUMBER: &str = " (os error ";

/// `text` without the number that the standard library adds to the host's words: ` (os error 2)`.
#[must_use]
pub fn without_number(text: &str) -> String {
    let mut parts = text.split(NUMBER);
    let mut line = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((_, rest)) => line += rest,
            None => line.extend([NUMBER, part]),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_goes() {
        let error = std::io::Error::from_raw_os_error(2).to_string();
        assert_eq!(without_number(&error), "No such file or directory");
        let two = format!("open a: {error}; open b: {error} again");
        let words = "No such file or directory";
        assert_eq!(without_number(&two), format!("open a: {words}; open b: {words} again"));
        assert_eq!(without_number("cut (os error 2"), "cut (os error 2");
    }
}
