//! Snapshots on their way into stores and out of them: an S3 server, and a folder.

mod s3;
mod sandbox;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use memory::{Frame, FrameRange, RamLayout};
use s3::S3;
use sandbox::Sandbox;
use snapshot::{Compression, Description, Left, Options, Snapshot, Time, Writer};

/// Of guest memory: 64 MiB, of which 20 are stored, so that an upload has several parts.
const FRAMES: u32 = 16384;
const STORED: u32 = 5000;

fn save(path: &Path, byte: u8, compression: Compression, parent: Option<Arc<Snapshot>>) {
    let layout = RamLayout::new(u64::from(FRAMES) * 4096).expect("a layout");
    let first = if parent.is_some() { 100 } else { 0 };
    let options = Options { compression, parent, ..Options::new(layout) };
    let writer = Writer::create(path, options).expect("begun");
    let mut lane = writer.lane().expect("a lane");
    if first > 0 {
        writer.unchanged(FrameRange { first: Frame(0), count: first }).expect("told");
    }
    // In two runs, with a hole.
    for frame in (first..STORED / 2).chain(STORED..STORED + STORED / 2) {
        let mut contents = [byte; 4096];
        contents[..4].copy_from_slice(&(frame * 31).to_le_bytes());
        lane.write(Frame(frame), &contents).expect("written");
    }
    lane.finish().expect("finished");
    let left = |first, end: u32| FrameRange { first: Frame(first), count: end - first };
    writer.leave(left(STORED / 2, STORED), Left::Zero).expect("left");
    writer.leave(left(STORED + STORED / 2, FRAMES), Left::Free).expect("left");
    let vm = Description {
        saved_at: Time { seconds: 0, nanoseconds: 0 },
        writer: "test".into(),
        engine: "none".into(),
        cpu: Default::default(),
        vcpus: 1,
        machine_version: 1,
        disks: Vec::new(),
        generation: None,
        agent: false,
    };
    writer.finish(vm, b"{}", &[Frame(STORED), Frame(7)]).expect("whole");
}

fn parts(path: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry"));
    let mut parts: Vec<_> = entries
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                fs::read(entry.path()).expect("a part"),
            )
        })
        .collect();
    parts.sort();
    parts
}

/// All files below a folder of a store, with their sizes.
fn objects(folder: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").display().to_string();
                found.push((name, path.metadata().expect("a file").len()));
            }
        }
    }
    // The server's own.
    found.retain(|(name, _)| !name.contains(".metadata") && !name.contains(".internal"));
    found.sort();
    found
}

/// What goes in comes out, and a name has one snapshot or the other.
#[test]
fn a_snapshot_goes_into_a_store_and_comes_out() {
    let sandbox = Sandbox::new();
    let s3 = S3::start(&sandbox.path("s3"));
    sandbox.set(&s3.environment());
    let text = |name: &str| sandbox.path(name).to_str().expect("text").to_owned();
    save(&sandbox.path("plain"), 1, Compression::None, None);
    save(&sandbox.path("zstd"), 2, Compression::Zstd, None);
    let parent = Snapshot::open(sandbox.path("plain")).expect("whole");
    save(&sandbox.path("child"), 3, Compression::None, Some(Arc::new(parent)));
    fs::create_dir(sandbox.path("folder")).expect("made");
    for (store, root) in [
        (format!("s3://{}/a/b", s3::BUCKET), sandbox.path("s3").join(s3::BUCKET)),
        (format!("file://{}", text("folder")), sandbox.path("folder")),
    ] {
        let url = |name: &str| format!("{store}/{name}");
        let refused = sandbox.refusal(2, &["push", &text("child"), &url("child")]);
        assert!(refused.contains("push it to") && refused.contains("/plain first"), "{refused}");
        assert_eq!(objects(&root), [], "nothing is left of it");
        for name in ["plain", "child", "zstd"] {
            let said = sandbox.success(&["push", &text(name), &url(name)]);
            assert!(said.contains("put in"), "{said}");
            let pulled = format!("{name}.pulled");
            // Beside its parent, where it is one.
            let said = sandbox.success(&["pull", &url(name), &text(&pulled)]);
            assert_eq!(said.contains("pull that, too"), name == "child", "{said}");
            assert_eq!(parts(&sandbox.path(name)), parts(&sandbox.path(&pulled)), "{name}");
            Snapshot::open(sandbox.path(&pulled)).expect("whole").verify().expect("whole");
            let there = sandbox.refusal(2, &["pull", &url(name), &text(&pulled)]);
            assert!(there.contains("--replace"), "{there}");
            sandbox.success(&["pull", "--replace", &url(name), &text(&pulled)]);
            fs::remove_dir_all(sandbox.path(&pulled)).expect("removed");
        }
        // Holes take no room.
        let memory = objects(&root).into_iter().find(|(name, _)| name.ends_with("/memory"));
        assert!(memory.expect("one").1 <= u64::from(STORED) * 4096);
        let there = sandbox.refusal(2, &["push", &text("zstd"), &url("plain")]);
        assert!(there.contains("a snapshot is there"), "{there}");
        let before = objects(&root).len();
        sandbox.success(&["push", "--replace", &text("zstd"), &url("plain")]);
        // The one with chunks in the place of one without.
        assert_eq!(
            objects(&root).len(),
            before + 1,
            "the old parts are gone: {:?}",
            objects(&root)
        );
        sandbox.success(&["push", "--replace", &text("zstd"), &url("plain")]);
        let json = sandbox.success(&["pull", "--json", &url("plain"), &text("again")]);
        assert!(json.contains("\"bytes\":"), "{json}");
        assert_eq!(parts(&sandbox.path("zstd")), parts(&sandbox.path("again")));
        fs::remove_dir_all(sandbox.path("again")).expect("removed");
        let orphan = sandbox.refusal(2, &["pull", &url("child"), &text("orphan")]);
        assert!(orphan.contains("expected snapshot"), "{orphan}");
        let none = sandbox.refusal(1, &["pull", &url("nobody"), &text("nobody")]);
        assert!(none.contains("/nobody/manifest: no such object"), "{none}");
        assert!(!sandbox.path("nobody").exists() && !sandbox.path("nobody.new").exists());
    }
}

/// A directory that was copied into a store by other means is one, too, with its holes.
#[test]
fn a_directory_that_was_copied_is_read() {
    let sandbox = Sandbox::new();
    s3::have_store_program();
    save(&sandbox.path("plain"), 1, Compression::None, None);
    let url = format!("file://{}", sandbox.path("plain").display());
    let to = sandbox.path("pulled");
    sandbox.success(&["pull", &url, to.to_str().expect("text")]);
    assert_eq!(parts(&sandbox.path("plain")), parts(&to));
}

/// Whatever breaks: an error in a line, nothing new here or there, and what was there is whole.
#[test]
fn a_store_that_fails_leaves_nothing_behind() {
    let sandbox = Sandbox::new();
    let s3 = S3::start(&sandbox.path("s3"));
    sandbox.set(&s3.environment());
    let text = |name: &str| sandbox.path(name).to_str().expect("text").to_owned();
    let url = format!("s3://{}/web", s3::BUCKET);
    save(&sandbox.path("old"), 1, Compression::None, None);
    save(&sandbox.path("new"), 2, Compression::None, None);
    sandbox.success(&["push", &text("old"), &url]);
    let sent = s3.sent();
    sandbox.success(&["pull", &url, &text("whole")]);
    let sent = s3.sent() - sent;
    assert!(sent > u64::from(STORED) * 4096, "{sent}");
    // In the middle of the answers to a pull.
    for part in [0, 1, 3, 6, 9] {
        s3.kill_after(sent * part / 10 + 1);
        let error = sandbox.refusal(1, &["pull", &url, &text("broken")]);
        assert!(error.contains(&url), "{error}");
        assert!(!sandbox.path("broken").exists() && !sandbox.path("broken.new").exists());
        s3.start_again();
    }
    s3.kill();
    let error = sandbox.refusal(1, &["push", "--replace", &text("new"), &url]);
    assert!(error.contains(&url), "{error}");
    s3.start_again();
    // And in the middle of a push: what the server answers is little.
    for bytes in [1, 300, 900, 1500] {
        s3.kill_after(bytes);
        sandbox.refusal(1, &["push", "--replace", &text("new"), &url]);
        s3.start_again();
        sandbox.success(&["pull", &url, &text("still")]);
        assert_eq!(parts(&sandbox.path("still")), parts(&sandbox.path("old")));
        fs::remove_dir_all(sandbox.path("still")).expect("removed");
    }
    // An object that is cut short, and one that is changed.
    let root = sandbox.path("s3").join(s3::BUCKET);
    let (name, bytes) =
        objects(&root).into_iter().find(|(name, _)| name.ends_with("/memory")).expect("one");
    let file = fs::File::options().write(true).open(root.join(&name)).expect("an object");
    file.set_len(bytes - 4096).expect("cut");
    let error = sandbox.refusal(1, &["pull", &url, &text("cut")]);
    assert!(error.contains("become shorter"), "{error}");
    file.set_len(bytes).expect("zeros");
    let error = sandbox.refusal(2, &["pull", &url, &text("changed")]);
    assert!(error.contains("checksum of a frame"), "{error}");
    assert!(!sandbox.path("cut").exists() && !sandbox.path("changed").exists());
}

/// A `fathom` that was installed without its companion says so, and what to do.
#[test]
fn without_the_program_that_has_the_stores_the_error_names_it() {
    let sandbox = Sandbox::new();
    let alone = sandbox.path("alone");
    fs::create_dir(&alone).expect("made");
    let program = sandbox.command(&[]).get_program().to_owned();
    fs::hard_link(&program, alone.join("fathom"))
        .or_else(|_| fs::copy(&program, alone.join("fathom")).map(drop))
        .expect("a copy");
    for arguments in [&["pull", "s3://bucket/web", "web"][..], &["restore", "s3://bucket/web"]] {
        let mut command = std::process::Command::new(alone.join("fathom"));
        let output = command.args(arguments).env("PATH", &alone).output().expect("it runs");
        let said = sandbox::text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains("fathom-store") && said.contains("cargo install"), "{said}");
    }
}

#[test]
fn bad_addresses_and_keys_are_one_line() {
    let sandbox = Sandbox::new();
    let s3 = S3::start(&sandbox.path("s3"));
    sandbox.set(&s3.environment());
    let to = sandbox.path("x");
    let to = to.to_str().expect("text");
    for address in ["gs://bucket/x", "s3://bucket", "web", "file://x"] {
        let refused = sandbox.refusal(2, &["pull", address, to]);
        assert!(refused.contains(address) && refused.contains("give s3://"), "{refused}");
    }
    let refused = sandbox.refusal(2, &["restore", "gs://bucket/x"]);
    assert!(refused.contains("give s3://"), "{refused}");
    sandbox.set(&[("AWS_SECRET_ACCESS_KEY", "another".to_owned())]);
    let url = format!("s3://{}/web", s3::BUCKET);
    let refused = sandbox.refusal(1, &["pull", &url, to]);
    assert!(refused.contains("AWS_ACCESS_KEY_ID"), "{refused}");
    let refused = sandbox.refusal(1, &["restore", &url]);
    assert!(refused.contains("AWS_ACCESS_KEY_ID"), "{refused}");
}
