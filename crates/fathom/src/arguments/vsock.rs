//! `cid=N,socket=PATH`.

use std::path::PathBuf;

use vmm::config::VsockConfig;

const FORM: &str = "write cid=N,socket=PATH";

/// A comma ends the path.
pub(super) fn parse(text: &str) -> Result<VsockConfig, String> {
    let (mut cid, mut socket) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("cid", number)) if cid.is_none() => {
                let number = number.parse::<u32>();
                cid = Some(number.map_err(|_| format!("`{part}` is no address: {FORM}"))?);
            }
            Some(("socket", path)) if socket.is_none() && !path.is_empty() => {
                socket = Some(PathBuf::from(path));
            }
            _ => return Err(format!("`{part}` is refused: {FORM}")),
        }
    }
    match (cid, socket) {
        (Some(cid), Some(socket)) => Ok(VsockConfig::new(cid, socket)),
        (None, _) => Err(format!("the guest's address is missing: {FORM}")),
        (_, None) => Err(format!("the path of the socket is missing: {FORM}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_needed_once() {
        let expected = VsockConfig::new(52, "/run/v=1");
        for text in ["cid=52,socket=/run/v=1", "socket=/run/v=1,cid=52"] {
            assert_eq!(parse(text), Ok(expected.clone()));
        }
        for text in [
            "",
            "cid=3",
            "socket=a",
            "cid=3,socket=",
            "cid=,socket=a",
            "cid=x,socket=a",
            "cid=-3,socket=a",
            "cid=4294967296,socket=a",
            "cid=3,cid=4,socket=a",
            "cid=3,socket=a,socket=b",
            "cid=3,socket=a,",
            "cid=3,socket=a,port=1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
