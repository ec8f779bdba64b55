use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use tempfile::TempDir;

use super::*;

fn directory() -> (TempDir, SocketDirectory) {
    let outer = tempfile::tempdir().expect("temporary directory");
    let directory = SocketDirectory::at(outer.path().join("fathom")).expect("directory");
    (outer, directory)
}

#[test]
fn a_name_has_one_owner() {
    let (_outer, directory) = directory();
    let mut claim = directory.claim("web").expect("claim");
    let _listener = claim.listen().expect("listen");
    let line = directory.claim("web").expect_err("in use").to_string();
    assert!(line.contains(&format!("`web` is in use by process {}", std::process::id())), "{line}");
    assert_eq!(directory.names().expect("names"), ["web"]);
    drop(claim);
    assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 0, "nothing is left");
    directory.claim("web").expect("free again");
}

#[test]
fn what_a_killed_process_left_is_replaced() {
    let (_outer, directory) = directory();
    // Sockets outlive their listeners; the lock file is there, and nobody holds it.
    for name in ["dead", "killed"] {
        drop(UnixListener::bind(directory.socket(name)).expect("bind"));
        fs::write(directory.lock(name), "4194305").expect("lock file");
    }
    let mut claim = directory.claim("dead").expect("claim");
    claim.listen().expect("listen");
    assert_eq!(directory.names().expect("names"), ["dead"]);
    assert!(!directory.socket("killed").exists(), "listing clears away the dead");
}

#[test]
fn a_socket_without_a_lock_is_nobodys() {
    let (_outer, directory) = directory();
    drop(UnixListener::bind(directory.socket("web")).expect("bind"));
    assert!(directory.names().expect("names").is_empty());
    directory.claim("web").expect("claim").listen().expect("listen");
}

#[test]
fn directories_of_others_are_refused() {
    let outer = tempfile::tempdir().expect("temporary directory");
    let open = outer.path().join("open");
    fs::create_dir(&open).expect("directory");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("mode");
    let line = SocketDirectory::at(open).expect_err("open to others").to_string();
    assert!(line.contains("is open to others"), "{line}");
    let link = outer.path().join("link");
    symlink(outer.path(), &link).expect("link");
    assert!(matches!(SocketDirectory::at(link), Err(DirectoryError::Unsafe { .. })));
    let file = outer.path().join("file");
    fs::write(&file, "").expect("file");
    assert!(matches!(SocketDirectory::at(file), Err(DirectoryError::Unsafe { .. })));
}

#[test]
fn names_stay_in_the_directory() {
    let (outer, directory) = directory();
    for name in ["", ".", "..", "../x", "/etc/passwd", "a/b", ".hidden", "a\0b"] {
        assert!(matches!(directory.claim(name), Err(DirectoryError::Name { .. })), "{name:?}");
        assert!(directory.client(name).path().starts_with(directory.path()));
        assert!(directory.client(name).status().is_err());
        assert!(!directory.is_running(name));
    }
    assert_eq!(fs::read_dir(outer.path()).expect("read").count(), 1);
    let long = "x".repeat(100);
    assert!(matches!(directory.claim(&long), Err(DirectoryError::PathLength { .. })));
}

#[test]
fn many_claimants_have_one_winner() {
    let (_outer, directory) = directory();
    for _ in 0..20 {
        let claims: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| directory.try_claim("web"))).collect();
            threads.into_iter().map(|thread| thread.join().expect("thread")).collect()
        });
        assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1);
    }
}
