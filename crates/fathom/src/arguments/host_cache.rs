//! `SIZE[,policy=demand|eviction]`.

use vmm::config::{HostCacheConfig, HostCachePolicy};

const FORM: &str = "write SIZE[,policy=demand|eviction], such as 256M,policy=eviction";

pub(super) fn parse(text: &str) -> Result<HostCacheConfig, String> {
    let mut parts = text.split(',');
    let size = parts.next().unwrap_or_default();
    let size = size.parse().map_err(|error| format!("{error}: {FORM}"))?;
    let mut policy = None;
    for part in parts {
        let asked = match part.split_once('=') {
            Some(("policy", "demand")) => HostCachePolicy::Demand,
            Some(("policy", "eviction")) => HostCachePolicy::Eviction,
            Some(("policy", other)) => return Err(format!("`{other}` is no policy: {FORM}")),
            _ => return Err(format!("`{part}` is no option: {FORM}")),
        };
        if policy.replace(asked).is_some() {
            return Err(format!("policy= is there twice: {FORM}"));
        }
    }
    Ok(HostCacheConfig { size, policy: policy.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use vmm::config::Bytes;

    use super::*;

    #[test]
    fn a_size_and_perhaps_a_policy() {
        let config = |policy| Ok(HostCacheConfig { size: Bytes(256 << 20), policy });
        assert_eq!(parse("256M"), config(HostCachePolicy::Eviction));
        assert_eq!(parse("256M,policy=eviction"), config(HostCachePolicy::Eviction));
        assert_eq!(parse("262144K,policy=demand"), config(HostCachePolicy::Demand));
        for text in [
            "",
            ",policy=demand",
            "policy=demand",
            "1M,",
            "1M,policy",
            "1M,policy=",
            "1M,policy=lru",
            "1M,demand",
            "-1M",
            "99999999T",
            "1M,policy=demand,policy=demand",
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains("write") && !error.contains('\n'), "{error}");
        }
    }
}
