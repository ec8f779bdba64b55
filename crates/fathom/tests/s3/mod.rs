//! An S3 server (s3s, over a folder), in the test's process, behind a wire that counts, stalls and breaks.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::{Duration, SystemTime};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::runtime::Runtime;

pub const BUCKET: &str = "bucket";
const KEY: &str = "AKIDTEST";
const SECRET: &str = "a secret of this test";

pub struct S3 {
    _server: Runtime,
    wire: Arc<Wire>,
    address: SocketAddr,
}

/// Between the client and the server.
#[derive(Default)]
struct Wire {
    /// Bytes that the server has sent.
    sent: AtomicU64,
    stalled: AtomicBool,
    dead: AtomicBool,
    /// Bytes that may still be sent before it dies, if that is told.
    rest: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl S3 {
    /// Serves what is, or comes to be, in `folder`; there is a bucket.
    pub fn start(folder: &Path) -> Self {
        have_store_program();
        std::fs::create_dir_all(folder.join(BUCKET)).expect("a folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let server = runtime.block_on(serve(folder));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let wire = Arc::new(Wire { rest: AtomicU64::new(u64::MAX), ..Wire::default() });
        let accepting = Arc::clone(&wire);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                accepting.connect(client, server);
            }
        });
        Self { _server: runtime, wire, address }
    }

    /// What a client is to find in its environment.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ACCESS_KEY_ID", KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
            ("AWS_REGION", "us-east-1".into()),
        ]
    }

    /// Bytes that it has sent.
    pub fn sent(&self) -> u64 {
        self.wire.sent.load(Ordering::Relaxed)
    }

    /// From now on it takes requests, and says nothing; or speaks again.
    pub fn stall(&self, stalled: bool) {
        self.wire.stalled.store(stalled, Ordering::Relaxed);
    }

    /// Breaks all connections, and takes no more.
    pub fn kill(&self) {
        self.wire.die();
    }

    /// It dies in the middle of an answer, after so many more bytes.
    pub fn kill_after(&self, bytes: u64) {
        self.wire.rest.store(bytes, Ordering::Relaxed);
    }

    pub fn start_again(&self) {
        self.wire.rest.store(u64::MAX, Ordering::Relaxed);
        self.wire.dead.store(false, Ordering::Relaxed);
    }
}

/// `fathom-store`, which `fathom` looks for beside itself. It is another package's program: cargo builds it with the whole
/// workspace's tests, and not with those of one package.
pub fn have_store_program() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates");
        let (Some(cargo), None) = (std::env::var_os("CARGO"), std::env::var_os("FATHOM_BIN"))
        else {
            // Where there is no cargo, somebody has put both there.
            return;
        };
        let folder = Path::new(env!("CARGO_BIN_EXE_fathom")).parent().expect("a folder");
        let built = fs::metadata(folder.join("fathom-store")).and_then(|it| it.modified());
        let newest =
            ["objects", "remote", "snapshot"].iter().map(|name| newest(sources.join(name))).max();
        if built.ok() > newest {
            return;
        }
        let mut build = Command::new(cargo);
        build.args(["build", "--package", "objects", "--target-dir"]);
        build.arg(folder.parent().expect("the target folder"));
        if folder.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo").success(), "fathom-store is not built");
    });
}

/// When something in a folder of sources was last changed.
fn newest(folder: PathBuf) -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder).expect("sources").flatten() {
        let changed = match entry.path() {
            folder if folder.is_dir() => self::newest(folder),
            file => file.metadata().and_then(|it| it.modified()).expect("a time"),
        };
        newest = newest.max(changed);
    }
    newest
}

/// The server itself.
async fn serve(folder: &Path) -> SocketAddr {
    let mut service = S3ServiceBuilder::new(FileSystem::new(folder).expect("a folder"));
    service.set_auth(SimpleAuth::from_single(KEY, SECRET));
    let service = service.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let http = Builder::new(TokioExecutor::new());
                let _ = http.serve_connection(TokioIo::new(client), service).await;
            });
        }
    });
    address
}

impl Wire {
    fn connect(self: &Arc<Self>, client: TcpStream, server: SocketAddr) {
        if self.dead.load(Ordering::Relaxed) {
            return;
        }
        let server = TcpStream::connect(server).expect("the server");
        for end in [&client, &server] {
            end.set_nodelay(true).expect("no delay");
            self.open.lock().expect("connections").push(end.try_clone().expect("a copy"));
        }
        let (to_server, from_client) = (server.try_clone(), client.try_clone());
        let (to_server, from_client) = (to_server.expect("a copy"), from_client.expect("a copy"));
        let (up, down) = (Arc::clone(self), Arc::clone(self));
        thread::spawn(move || up.carry(from_client, to_server, false));
        thread::spawn(move || down.carry(server, client, true));
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream, is_down: bool) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            while is_down && self.stalled.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(10));
            }
            let mut length = length;
            if is_down {
                self.sent.fetch_add(length as u64, Ordering::Relaxed);
                let less = |rest: u64| Some(rest.saturating_sub(length as u64));
                let rest = self.rest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                length = length.min(rest.unwrap_or(0) as usize);
            }
            if to.write_all(&bytes[..length]).is_err() {
                break;
            }
            if is_down && self.rest.load(Ordering::Relaxed) == 0 {
                self.die();
            }
        }
        // Gone already, perhaps.
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
        for end in self.open.lock().expect("connections").drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}
