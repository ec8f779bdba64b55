//! `SOCKET[,nowait]`.

use vmm::config::GdbConfig;

/// A comma ends the path.
pub(super) fn parse(text: &str) -> Result<GdbConfig, String> {
    let (socket, wait) = match text.split_once(',') {
        None => (text, true),
        Some((socket, "nowait")) => (socket, false),
        Some((_, option)) => {
            return Err(format!("`{option}` is no option: write SOCKET[,nowait]"));
        }
    };
    if socket.is_empty() {
        return Err("the path of the socket is missing: write SOCKET[,nowait]".to_owned());
    }
    Ok(GdbConfig { socket: socket.into(), wait })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_waits_unless_asked_not_to() {
        for (text, wait) in [("/run/gdb", true), ("/run/gdb,nowait", false)] {
            assert_eq!(parse(text), Ok(GdbConfig { socket: "/run/gdb".into(), wait }));
        }
        for text in ["", ",nowait", "a,", "a,wait", "a,nowait,nowait"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
