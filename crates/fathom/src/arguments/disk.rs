//! `PATH[,ro][,overlay=PATH][,no-host-cache]`.

use vmm::config::DiskConfig;

const FORM: &str = "write PATH[,ro][,overlay=PATH][,no-host-cache]";

/// A comma ends a path: a path with one in it cannot be given here.
pub(super) fn parse(text: &str) -> Result<DiskConfig, String> {
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default();
    if path.is_empty() {
        return Err(format!("the path is missing: {FORM}"));
    }
    let mut config =
        DiskConfig { path: path.into(), read_only: false, overlay: None, no_host_cache: false };
    for part in parts {
        match (part, part.strip_prefix("overlay=")) {
            ("ro", _) => config.read_only = true,
            ("no-host-cache", _) => config.no_host_cache = true,
            (_, Some("")) => return Err("the path of the overlay is missing".to_owned()),
            (_, Some(_)) if config.overlay.is_some() => {
                return Err("a disk has one overlay".to_owned());
            }
            (_, Some(overlay)) => config.overlay = Some(overlay.into()),
            _ => return Err(format!("`{part}` is no option: {FORM}")),
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn every_form_is_read() {
        for (text, read_only, overlay) in [
            ("a.img", false, None),
            ("a.img,ro", true, None),
            ("a.img,overlay=b", false, Some("b")),
            ("a.img,ro,overlay=b=c", true, Some("b=c")),
            ("a.img,overlay=b,ro", true, Some("b")),
        ] {
            let overlay = overlay.map(PathBuf::from);
            let path = PathBuf::from("a.img");
            let config = DiskConfig { path, read_only, overlay, no_host_cache: false };
            assert_eq!(parse(text).as_ref(), Ok(&config), "{text}");
            let config = DiskConfig { no_host_cache: true, ..config };
            assert_eq!(parse(&format!("{text},no-host-cache")), Ok(config), "{text}");
        }
    }

    #[test]
    fn the_rest_is_refused() {
        for text in ["", ",ro", "a,", "a,rw", "a,overlay", "a,overlay=", "a,overlay=b,overlay=c"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
