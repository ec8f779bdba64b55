//! `PATH[,methods=METHODS][,accesses=PATH]`.

use vmm::config::{EstimateLogConfig, EstimateMethods};

const SHAPE: &str = "write PATH[,methods=METHODS][,accesses=PATH]";

/// A comma ends each path.
pub(super) fn parse(text: &str) -> Result<EstimateLogConfig, String> {
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default();
    if path.is_empty() {
        return Err(format!("the path of the log is missing: {SHAPE}"));
    }
    let mut config = EstimateLogConfig {
        path: path.into(),
        methods: EstimateMethods::default(),
        accesses: None,
    };
    for part in parts {
        match part.split_once('=') {
            Some(("methods", name)) => config.methods = methods(name)?,
            Some(("accesses", path)) if !path.is_empty() => config.accesses = Some(path.into()),
            _ => return Err(format!("`{part}` is no option: {SHAPE}")),
        }
    }
    Ok(config)
}

fn methods(name: &str) -> Result<EstimateMethods, String> {
    Ok(match name {
        "census" => EstimateMethods::Census,
        "sampling" => EstimateMethods::Sampling,
        "scan" => EstimateMethods::Scan,
        "order" => EstimateMethods::Order,
        "curve" => EstimateMethods::Curve,
        "default" => EstimateMethods::Default,
        "all" => EstimateMethods::All,
        _ => {
            return Err(format!(
                "`{name}` is no method: write census, sampling, scan, order, curve, default or all"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_may_be_left_out() {
        let config = |methods, accesses: Option<&str>| {
            Ok(EstimateLogConfig { path: "a".into(), methods, accesses: accesses.map(Into::into) })
        };
        assert_eq!(parse("a"), config(EstimateMethods::Default, None));
        assert_eq!(parse("a,methods=curve,accesses=b"), config(EstimateMethods::Curve, Some("b")));
        for text in ["", ",methods=all", "a,", "a,methods=some", "a,accesses=", "a,b"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
