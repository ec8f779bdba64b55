//! `PATH[,ro][,overlay=PATH]`.

use vmm::config::DiskConfig;

/// A comma ends a path: a path with one in it cannot be given here.
pub(super) fn parse(text: &str) -> Result<DiskConfig, String> {
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default();
    if path.is_empty() {
        return Err("the path is missing: write PATH[,ro][,overlay=PATH]".to_owned());
    }
    let mut config = DiskConfig { path: path.into(), read_only: false, overlay: None };
    for part in parts {
        match (part, part.strip_prefix("overlay=")) {
            ("ro", _) => config.read_only = true,
            (_, Some("")) => return Err("the path of the overlay is missing".to_owned()),
            (_, Some(_)) if config.overlay.is_some() => {
                return Err("a disk has one overlay".to_owned());
            }
            (_, Some(overlay)) => config.overlay = Some(overlay.into()),
            _ => return Err(format!("`{part}` is no option: write PATH[,ro][,overlay=PATH]")),
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
            let config = DiskConfig { path: "a.img".into(), read_only, overlay };
            assert_eq!(parse(text), Ok(config), "{text}");
        }
    }

    #[test]
    fn the_rest_is_refused() {
        for text in ["", ",ro", "a,", "a,rw", "a,overlay", "a,overlay=", "a,overlay=b,overlay=c"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
