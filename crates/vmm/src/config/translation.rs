//! How the translator's engine is to work.

use std::path::PathBuf;

use engine_translate::{Dump, NativeOptions, Options, Policy, Predict};
use serde::{Deserialize, Serialize};

use super::{Bytes, ConfigError, EngineKind};

/// How the translator's engine is to work: all as asked, nothing by default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TranslationConfig {
    /// Nothing is translated.
    pub interpret: bool,
    /// A block is translated when it runs for the time that has this number, from 1.
    pub hot: Option<u32>,
    /// Which blocks are translated before they have run often.
    pub profile: Option<ProfileConfig>,
    /// The profile of what is translated is written here, for a later run.
    pub profile_out: Option<PathBuf>,
    /// Which blocks are translated together, by the name of a policy.
    pub paths: Option<Paths>,
    /// Bytes of code, at most.
    pub code: Option<Bytes>,
    /// Optimisations that are left out, by their words: see [`TranslationConfig::WORDS`].
    pub without: Vec<String>,
    /// Blocks with a byte at this physical address are printed when they are translated.
    pub dump: Option<u64>,
    /// So many pieces of code that take the most time are printed at the end.
    pub dump_hot: Option<usize>,
    /// Names of the code are written for Linux perf.
    pub perf_map: bool,
    /// What has code is executed by the interpreter, too, and compared: each block by itself, unless there is a policy.
    pub verify: bool,
    /// Somebody wants to know what was translated.
    pub stats: bool,
}

/// Which blocks are translated before they have run often.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProfileConfig {
    /// None.
    Counters,
    /// What programs run again soon.
    Programs,
    /// What anybody runs again soon, and loops with many trips ahead.
    Predict,
    /// Those that a profile names, which an earlier run wrote.
    File(PathBuf),
}

/// A policy of paths: see [`engine_translate::Policy`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Paths {
    /// Each block by itself.
    Blocks,
    /// What runs next behind a hot head.
    Net,
    /// As DynamoRIO by default.
    Dynamorio,
    /// As Pin.
    Pin,
    /// Ours.
    Fathom,
}

impl Paths {
    /// All, with their names.
    pub const ALL: [(&str, Self); 5] = [
        ("blocks", Self::Blocks),
        ("net", Self::Net),
        ("dynamorio", Self::Dynamorio),
        ("pin", Self::Pin),
        ("fathom", Self::Fathom),
    ];

    fn policy(self) -> Policy {
        match self {
            Self::Blocks => Policy::BLOCKS,
            Self::Net => Policy::NET,
            Self::Dynamorio => Policy::DYNAMORIO,
            Self::Pin => Policy::PIN,
            Self::Fathom => Policy::FATHOM,
        }
    }
}

impl TranslationConfig {
    /// The words that leave optimisations out, and what is done instead.
    pub const WORDS: &[(&str, &str)] = NativeOptions::WORDS;

    /// As the engine takes it.
    pub(super) fn options(&self, engine: EngineKind) -> Result<Options, ConfigError> {
        if engine == EngineKind::Kvm && *self != Self::default() {
            return Err(ConfigError::NothingTranslated);
        }
        let mut options = Options { translate: !self.interpret, ..Options::default() };
        options.dump = self.dump_hot.map(Dump::Hot).or(self.dump.map(Dump::At));
        if let Some(paths) = self.paths {
            options.paths = paths.policy();
            options.hot = options.paths.hot();
        }
        if self.verify {
            // What is interpreted anyway is not compared.
            (options.verify, options.hot) = (true, 1);
            options.paths = self.paths.map_or(Policy::BLOCKS, Paths::policy);
        }
        if let Some(hot) = self.hot {
            options.hot = Some(hot).filter(|&hot| hot > 0).ok_or(ConfigError::Hot)?;
        }
        options.predict = self.predict();
        if let Some(code) = self.code {
            options.code_bytes = code_bytes(code)?;
        }
        for word in &self.without {
            let left = options.native.without(word);
            options.native = left.ok_or_else(|| ConfigError::Optimisation(word.clone()))?;
        }
        Ok(options)
    }
}

impl TranslationConfig {
    /// Other policies of paths have rules of their own.
    fn predict(&self) -> Predict {
        match self.profile {
            Some(ProfileConfig::Counters | ProfileConfig::File(_)) => Predict::Nothing,
            Some(ProfileConfig::Programs) => Predict::Programs,
            Some(ProfileConfig::Predict) => Predict::Everything,
            None if self.paths.is_none_or(|paths| paths == Paths::Fathom) => Predict::default(),
            None => Predict::Nothing,
        }
    }
}

fn code_bytes(code: Bytes) -> Result<usize, ConfigError> {
    let (min, max) = (Options::CODE_MIN, Options::CODE_MAX);
    let size = usize::try_from(code.0).ok().filter(|size| (min..=max).contains(size));
    let bytes = |size| Bytes(size as u64);
    size.ok_or(ConfigError::Code { code, min: bytes(min), max: bytes(max) })
}
