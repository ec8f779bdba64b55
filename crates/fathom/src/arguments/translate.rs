//! `KEY[=VALUE],...`: how the translator works.

use vmm::config::{Paths, ProfileConfig, TranslationConfig};

const KEYS: &str = "write interpret, hot=N, paths=NAME, profile=counters|programs|predict|PATH, profile-out=PATH, \
                    code=SIZE, keep-flags, no-links, no-far-links, no-jump-table, no-return-pairs, no-stack-slot, \
                    no-groups, no-strips, no-crossing, no-time, no-interrupts, no-bases, no-calls, no-strings, verify, \
                    perf-map, dump=ADDRESS or dump=hot[:N]";

/// Pieces of code that are shown where it is not said how many.
const HOTTEST: usize = 10;

pub(super) fn parse(text: &str) -> Result<TranslationConfig, String> {
    let mut config = TranslationConfig::default();
    for part in text.split(',') {
        let bad = |error: &dyn std::fmt::Display| format!("`{part}`: {error}");
        match part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value))) {
            ("interpret", None) => config.interpret = true,
            ("keep-flags", None) => config.keep_flags = true,
            ("no-links", None) => config.no_links = true,
            ("no-far-links", None) => config.no_far_links = true,
            ("no-jump-table", None) => config.no_jump_table = true,
            ("no-return-pairs", None) => config.no_return_pairs = true,
            ("no-stack-slot", None) => config.no_stack_slot = true,
            ("no-groups", None) => config.no_groups = true,
            ("no-strips", None) => config.no_strips = true,
            ("no-crossing", None) => config.no_crossing = true,
            ("no-time", None) => config.no_time = true,
            ("no-interrupts", None) => config.no_interrupts = true,
            ("no-bases", None) => config.no_bases = true,
            ("no-calls", None) => config.no_calls = true,
            ("no-strings", None) => config.no_strings = true,
            ("verify", None) => config.verify = true,
            ("perf-map", None) => config.perf_map = true,
            ("hot", Some(count)) => config.hot = Some(count.parse().map_err(|error| bad(&error))?),
            ("paths", Some(name)) => config.paths = Some(paths(name).map_err(|error| bad(&error))?),
            ("code", Some(size)) => config.code = Some(size.parse().map_err(|error| bad(&error))?),
            ("profile", Some(kind)) if !kind.is_empty() => config.profile = Some(profile(kind)),
            ("profile-out", Some(path)) if !path.is_empty() => {
                config.profile_out = Some(path.into());
            }
            ("dump", Some("hot")) => config.dump_hot = Some(HOTTEST),
            ("dump", Some(hot)) if hot.starts_with("hot:") => {
                config.dump_hot = Some(hot[4..].parse().map_err(|error| bad(&error))?);
            }
            ("dump", Some(at)) => config.dump = Some(address(at).map_err(|error| bad(&error))?),
            _ => return Err(format!("`{part}` is not known: {KEYS}")),
        }
    }
    Ok(config)
}

fn profile(kind: &str) -> ProfileConfig {
    match kind {
        "counters" => ProfileConfig::Counters,
        "programs" => ProfileConfig::Programs,
        "predict" => ProfileConfig::Predict,
        path => ProfileConfig::File(path.into()),
    }
}

fn paths(name: &str) -> Result<Paths, String> {
    let known = Paths::ALL.into_iter().find(|(known, _)| *known == name);
    let names = Paths::ALL.map(|(name, _)| name).join(", ");
    known.map(|(_, paths)| paths).ok_or_else(|| format!("there are {names}"))
}

/// As perf's map names blocks: in hexadecimal.
fn address(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)
}

#[cfg(test)]
mod tests {
    use vmm::config::Bytes;

    use super::*;

    #[test]
    fn keys_come_in_any_order() {
        let expected = TranslationConfig {
            hot: Some(1),
            code: Some(Bytes(1 << 20)),
            no_links: true,
            dump: Some(0x100_0040),
            ..TranslationConfig::default()
        };
        let config = parse("code=1M,dump=0x1000040,no-links,hot=1");
        assert_eq!(config.as_ref(), Ok(&expected));
        assert_eq!(parse("no-links,hot=1,dump=1000040,code=1024K").as_ref(), Ok(&expected));
        let all = parse(
            "interpret,keep-flags,no-links,no-far-links,no-jump-table,no-stack-slot,perf-map,verify,\
             no-return-pairs,no-groups,no-strips,no-crossing",
        );
        let all = all.expect("switches");
        assert!(all.interpret && all.keep_flags && all.no_links && all.no_far_links);
        assert!(all.no_return_pairs && all.no_groups && all.no_strips && all.no_crossing);
        assert!(all.no_jump_table && all.no_stack_slot && all.perf_map && all.verify && !all.stats);
        assert!(!all.no_time && !all.no_calls);
        let all = parse("no-time,no-interrupts,no-bases,no-calls,no-strings").expect("switches");
        assert!(all.no_time && all.no_interrupts && all.no_bases && all.no_calls && all.no_strings);
    }

    #[test]
    fn the_hottest_code_is_shown_by_number() {
        for (text, expected) in [("dump=hot", HOTTEST), ("dump=hot:3", 3)] {
            let config = parse(text).expect(text);
            assert_eq!((config.dump_hot, config.dump), (Some(expected), None));
        }
        assert!(parse("dump=hot:").is_err() && parse("dump=hot:x").is_err());
    }

    #[test]
    fn a_profile_is_a_policy_or_a_file() {
        for (text, expected) in [
            ("profile=counters", ProfileConfig::Counters),
            ("profile=programs", ProfileConfig::Programs),
            ("profile=predict", ProfileConfig::Predict),
            ("profile=./predict", ProfileConfig::File("./predict".into())),
        ] {
            assert_eq!(parse(text).expect(text).profile, Some(expected));
        }
        let config = parse("profile-out=p").expect("file");
        assert_eq!((config.profile_out, config.profile), (Some("p".into()), None));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for text in [
            "",
            "hot",
            "hot=",
            "hot=-1",
            "hot=x",
            "code",
            "code=1X",
            "paths=x",
            "interpret=1",
            "profile",
            "profile=",
            "profile-out=",
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(&format!("`{text}`")), "{error}");
        }
        for text in ["interpret,", "dump=", "dump=xyz", "dump", "no-link", "Interpret"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
