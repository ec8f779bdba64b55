//! Debian packages without root: apt with a state and a cache of its own inside the kit.
//!
//! The host's sources and keys are used as they are; nothing is installed and nothing outside
//! the kit is written, so it is the same for root and for an ordinary user, on a machine whose
//! package lists are empty and on one whose lists are old.

use crate::command::{find_program, output, run};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Package lists older than this are fetched anew before anything is downloaded: a mirror
/// deletes superseded packages, so an old list names files that are gone.
const LISTS_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// apt, bound to a folder of ours.
pub(crate) struct Apt {
    config: PathBuf,
    folder: PathBuf,
}

impl Apt {
    /// Set up (or reuse) the private state under `folder`.
    ///
    /// Fails on a host without apt, naming the options that replace it.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        Self::open_with(folder, "")
    }

    /// Where Debian's backports go before its release, from where the host has its release.
    pub(crate) fn open_backports(folder: &Path) -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
        let codename = debian_codename(&text).context("backports are for Debian, not this host")?;
        let sources = folder.join("sources.list");
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let mut get = Command::new("apt-get");
        get.args(["indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]);
        let uri = uri_of(codename, &output(&mut get)?)
            .with_context(|| format!("apt has no source of Debian {codename}"))?
            .to_owned();
        fs::write(&sources, backports_sources(&uri, codename))
            .with_context(|| format!("write {}", sources.display()))?;
        // What the host has installed need not be in these suites.
        let nothing = nothing_installed(folder)?;
        let more = format!(
            "Dir::State::status \"{}\";\nDir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             APT::Default-Release \"{codename}-backports\";\n",
            nothing.display(),
            sources.display()
        );
        Self::open_with(folder, &more)
    }

    /// With `more` in the configuration.
    fn open_with(folder: &Path, more: &str) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            if find_program(program).is_none() {
                bail!(
                    "this host has no {program}: give the files yourself: cargo xtask guest \
                     --kernel VMLINUZ --modules /lib/modules/VERSION --busybox STATIC-BUSYBOX"
                );
            }
        }
        for dir in ["state/lists/partial", "cache/archives/partial", "debs"] {
            let dir = folder.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let config = folder.join("apt.conf");
        fs::write(&config, configuration(folder) + more)
            .with_context(|| format!("write {}", config.display()))?;
        let apt = Self { config, folder: folder.to_owned() };
        apt.refresh_old_lists()?;
        Ok(apt)
    }

    /// The first package that `package` depends on: how a meta-package names the real one.
    pub(crate) fn first_dependency(&self, package: &str) -> Result<String> {
        let text = output(self.cache().args(["depends", package])).with_context(|| {
            format!("{package} is not among this host's packages: is it Debian? else give --kernel")
        })?;
        first_depends(&text).with_context(|| format!("{package} depends on nothing: {text}"))
    }

    /// The packages and all that they need on a machine that has nothing yet, without
    /// recommendations: apt's own choice, from a simulated installation.
    pub(crate) fn closure(&self, packages: &[&str]) -> Result<Vec<String>> {
        let nothing = nothing_installed(&self.folder)?;
        let mut get = self.get();
        get.arg("-o").arg(format!("Dir::State::status={}", nothing.display()));
        get.args(["--simulate", "--no-install-recommends", "install"]).args(packages);
        Ok(installed_names(&output(&mut get)?))
    }

    /// Download the packages, unless they are here already; returns the files, in order.
    pub(crate) fn download(&self, packages: &[String]) -> Result<Vec<PathBuf>> {
        let files = self.file_names(packages)?;
        let debs = self.folder.join("debs");
        let missing: Vec<_> = files.iter().filter(|f| !f.is_complete(&debs)).collect();
        if !missing.is_empty() {
            let mib = missing.iter().map(|f| f.size).sum::<u64>().div_ceil(1 << 20);
            eprintln!("kit: downloading {} packages, {mib} MiB", missing.len());
            let names = missing.iter().map(|f| f.package.as_str());
            run(self.get().current_dir(&debs).args(["-qq", "download"]).args(names))?;
        }
        files.iter().map(|file| file.checked(&debs)).collect()
    }

    /// What each package's file is called; apt is asked once, for it is slow to start.
    fn file_names(&self, packages: &[String]) -> Result<Vec<PackageFile>> {
        let text = output(self.get().args(["-qq", "download", "--print-uris"]).args(packages))?;
        packages
            .iter()
            .map(|package| {
                PackageFile::find(package, &text)
                    .with_context(|| format!("apt-get tells no file for {package}"))
            })
            .collect()
    }

    fn refresh_old_lists(&self) -> Result<()> {
        let stamp = self.folder.join("updated");
        let age =
            fs::metadata(&stamp).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age < LISTS_AGE_MAX) {
            return Ok(());
        }
        eprintln!("kit: fetching package lists");
        // A third-party source that cannot be reached is only a warning; a missing package
        // shows itself when it is asked for.
        run(self.get().args(["-qq", "update"]))
            .context("fetch package lists: is there a network?")?;
        fs::write(&stamp, "").with_context(|| format!("write {}", stamp.display()))
    }

    fn get(&self) -> Command {
        self.program("apt-get")
    }

    fn cache(&self) -> Command {
        self.program("apt-cache")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.arg("-c").arg(&self.config).env("LC_ALL", "C");
        command
    }
}

/// Unpack a package into `into`.
pub(crate) fn unpack(deb: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("create {}", into.display()))?;
    run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into))
}

/// Unpack a package into a root folder whose `/bin` and `/lib` are links, which `dpkg-deb -x`
/// would replace; documentation is left out.
pub(crate) fn unpack_merged(deb: &Path, into: &Path) -> Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start dpkg-deb")?;
    let piped = archive.stdout.take().context("dpkg-deb has an output")?;
    let status = Command::new("tar")
        .args(["-x", "--keep-directory-symlink", "--no-same-owner", "--no-same-permissions"])
        .args(["doc", "man", "locale", "info"].map(|dir| format!("--exclude=./usr/share/{dir}/*")))
        .arg("-C")
        .arg(into)
        .stdin(piped)
        .status()
        .context("start tar")?;
    if !archive.wait()?.success() || !status.success() {
        bail!("{}: cannot be unpacked: delete it and try again", deb.display());
    }
    Ok(())
}

/// What overrides the host's configuration: our folders, no privileged download user (it could
/// not enter ours), and none of the hooks that tend the host's own caches.
fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "Dir::State \"{folder}/state\";\n\
         Dir::State::status \"/var/lib/dpkg/status\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         APT::Sandbox::User \"\";\n\
         APT::Get::AllowUnauthenticated \"false\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear DPkg::Post-Invoke;\n\
         #clear Acquire::IndexTargets::deb::DEP-11;\n\
         #clear Acquire::IndexTargets::deb::DEP-11-icons;\n"
    )
}

/// The list of packages of a machine that has none.
fn nothing_installed(folder: &Path) -> Result<PathBuf> {
    let nothing = folder.join("nothing-installed");
    fs::write(&nothing, "").with_context(|| format!("write {}", nothing.display()))?;
    Ok(nothing)
}

fn debian_codename(os_release: &str) -> Option<&str> {
    let value = |name: &str| os_release.lines().find_map(|line| line.strip_prefix(name));
    value("ID=").filter(|id| *id == "debian").and_then(|_| value("VERSION_CODENAME="))
}

/// From lines of a codename and where its packages are.
fn uri_of<'a>(codename: &str, targets: &'a str) -> Option<&'a str> {
    let mut targets = targets.lines().filter_map(|line| line.split_once(' '));
    targets.find(|(name, _)| *name == codename).map(|(_, uri)| uri)
}

fn backports_sources(uri: &str, codename: &str) -> String {
    ["", "-backports"]
        .map(|suite| {
            format!(
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
             {uri} {codename}{suite} main\n"
            )
        })
        .concat()
}

struct PackageFile {
    package: String,
    name: String,
    size: u64,
}

impl PackageFile {
    /// From the line of `--print-uris` whose file is the package's:
    /// `'address' name_version_architecture.deb size checksum`.
    fn find(package: &str, text: &str) -> Option<Self> {
        text.lines().filter(|line| line.starts_with('\'')).find_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let name = words.next()?.to_owned();
            let size = words.next()?.parse().ok()?;
            let ours = name.split('_').next() == Some(package);
            ours.then(|| Self { package: package.to_owned(), name, size })
        })
    }

    fn is_complete(&self, debs: &Path) -> bool {
        fs::metadata(debs.join(&self.name)).is_ok_and(|m| m.len() == self.size)
    }

    fn checked(&self, debs: &Path) -> Result<PathBuf> {
        let file = debs.join(&self.name);
        if !self.is_complete(debs) {
            bail!("{}: not downloaded whole: delete it and try again", file.display());
        }
        Ok(file)
    }
}

fn first_depends(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("Depends: "))?;
    Some(line.trim().to_owned())
}

/// A simulated installation says `Inst NAME (VERSION ...)` for each package.
fn installed_names(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("Inst "));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_package_leads_to_the_kernel_of_the_day() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n";
        assert_eq!(first_depends(text).as_deref(), Some("linux-image-6.1.0-1-cloud-amd64"));
        assert_eq!(first_depends("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn a_simulated_installation_names_packages() {
        let text = "Reading...\nInst libc6 (2.36 Debian:12 [amd64])\nConf libc6 (2.36)\nInst gzip (1.12)\n";
        assert_eq!(installed_names(text), ["libc6", "gzip"]);
    }

    #[test]
    fn backports_are_of_the_hosts_release() {
        let text = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(debian_codename(text), Some("bookworm"));
        assert_eq!(debian_codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        let targets = "x-security http://s/\nx http://d/\nx-updates http://u/\n";
        let uri = uri_of("x", targets).unwrap();
        assert!(backports_sources(uri, "x").contains(" http://d/ x-backports main\n"));
        assert_eq!(uri_of("y", targets), None);
    }

    #[test]
    fn a_printed_address_gives_file_and_size() {
        let text = "'http://x/z.deb' zip_1_all.deb 9 SHA256:0\n\
                    'http://x/y.deb' gzip_1%3a2_amd64.deb 15 SHA256:0\n";
        let file = PackageFile::find("gzip", text).unwrap();
        assert_eq!((file.name.as_str(), file.size), ("gzip_1%3a2_amd64.deb", 15));
        assert!(PackageFile::find("gzip", "E: no such package\n").is_none());
    }
}
