//! `KEY[=VALUE],...`: how the translator works.

use vmm::config::{Paths, ProfileConfig, TranslationConfig};

/// Pieces of code that are shown where it is not said how many.
const HOTTEST: usize = 10;

pub(super) fn parse(text: &str) -> Result<TranslationConfig, String> {
    let mut config = TranslationConfig::default();
    for part in text.split(',') {
        let bad = |error: &dyn std::fmt::Display| format!("`{part}`: {error}");
        match part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value))) {
            ("interpret", None) => config.interpret = true,
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
            (word, None) if TranslationConfig::WORDS.iter().any(|(known, _)| *known == word) => {
                config.without.push(word.to_owned());
            }
            _ => return Err(format!("`{part}` is not known: write {}", keys())),
        }
    }
    Ok(config)
}

/// What can be written.
fn keys() -> String {
    let words: Vec<_> = TranslationConfig::WORDS.iter().map(|(word, _)| *word).collect();
    format!(
        "interpret, hot=N, paths=NAME, profile=counters|programs|predict|PATH, profile-out=PATH, code=SIZE, {}, \
         verify, perf-map, dump=ADDRESS or dump=hot[:N]",
        words.join(", ")
    )
}

/// The help text.
pub(super) fn help() -> String {
    let words: Vec<_> = TranslationConfig::WORDS
        .iter()
        .map(|(word, instead)| format!("{word}: {instead}"))
        .collect();
    format!("{HEAD} {}. {FOOT}", words.join("; "))
}

const HEAD: &str = "How the translator works, for finding its faults; on engine translate only. interpret: nothing is \
    translated. hot=N: a block is translated when it runs for the Nth time [default: 8]. paths=NAME: which blocks are \
    translated together: blocks (each by itself), net, dynamorio, pin or fathom, which is the default. \
    profile=counters: only then; programs: also when a program (not the kernel) runs it again soon after its first \
    time, which is the default; predict: the same for all code, and when a loop's trips to come make up for it; PATH: \
    when an earlier run translated it, with profile-out=PATH. code=SIZE: memory for code, stubs and bookkeeping, 16K \
    to 128M; when it is full, all code goes.";

const FOOT: &str = "verify: every block, or path where there is paths=NAME, is translated and executed by the \
    interpreter, too, and the machine ends where they differ (one vCPU, no links, thirty times slower). perf-map: \
    /tmp/perf-PID.map names the code for `perf report`. dump=ADDRESS: print the block at this physical address \
    (hexadecimal) and its code when it is translated; dump=hot, dump=hot:N: at the end, the N pieces of code (10 where \
    it is not said) that the vCPUs were in most often when looked for, a thousand times a second";

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
            without: vec!["no-links".into()],
            dump: Some(0x100_0040),
            ..TranslationConfig::default()
        };
        let config = parse("code=1M,dump=0x1000040,no-links,hot=1");
        assert_eq!(config.as_ref(), Ok(&expected));
        assert_eq!(parse("no-links,hot=1,dump=1000040,code=1024K").as_ref(), Ok(&expected));
        let all = parse("interpret,perf-map,verify").expect("switches");
        assert!(all.interpret && all.perf_map && all.verify && !all.stats);
    }

    #[test]
    fn each_word_is_known_and_in_the_help() {
        let words: Vec<_> = TranslationConfig::WORDS.iter().map(|(word, _)| *word).collect();
        assert_eq!(parse(&words.join(",")).expect("words").without, words);
        let unknown = parse("no-link").expect_err("no word");
        for word in words {
            assert!(help().contains(&format!("{word}: ")) && unknown.contains(word), "{word}");
        }
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
