//! Lines for the machine that reads the console.

use crate::sys;
use std::fmt::Write as _;
use std::io::Write as _;

/// A field's value.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    Bool(bool),
    Int(i64),
    Size(u64),
    Text(&'a str),
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i32> for Value<'_> {
    fn from(value: i32) -> Self {
        Self::Int(value.into())
    }
}

impl From<u64> for Value<'_> {
    fn from(value: u64) -> Self {
        Self::Size(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(value)
    }
}

/// Print one event. The line goes out in one write, so that threads and the kernel's own
/// messages do not tear it; a newline before it ends what another program left unfinished.
pub(crate) fn emit(event: &str, fields: &[(&str, Value<'_>)]) {
    let line = format!("@fathom {}\n", object(event, fields, sys::uptime_ms()));
    let mut out = std::io::stdout().lock();
    // A console that is gone leaves nobody to tell.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

fn object(event: &str, fields: &[(&str, Value<'_>)], uptime_ms: u64) -> String {
    let mut json = format!("{{\"event\":{}", quoted(event));
    let last = [("uptime_ms", Value::Size(uptime_ms))];
    for (name, value) in fields.iter().chain(&last) {
        let _ = match value {
            Value::Bool(value) => write!(json, ",\"{name}\":{value}"),
            Value::Int(value) => write!(json, ",\"{name}\":{value}"),
            Value::Size(value) => write!(json, ",\"{name}\":{value}"),
            Value::Text(value) => write!(json, ",\"{name}\":{}", quoted(value)),
        };
    }
    json.push('}');
    json
}

fn quoted(text: &str) -> String {
    let mut json = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if u32::from(c) < 0x20 => {
                let _ = write!(json, "\\u{:04x}", u32::from(c));
            }
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_json_object() {
        let fields = [("name", "a \"b\"\n".into()), ("bytes", 5_u64.into()), ("ok", true.into())];
        let json = object("test", &fields, 7);
        let expected =
            r#"{"event":"test","name":"a \"b\"\u000a","bytes":5,"ok":true,"uptime_ms":7}"#;
        assert_eq!(json, expected);
    }
}
