//! Where a snapshot is: the address that the user gives, and the store that it names.

use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use remote::{Address, AddressError};

use crate::error::ObjectsError;

/// A server that is gone is known to be within this.
const CONNECT: Duration = Duration::from_secs(3);
/// A server that is silent in the middle of an answer is given up.
const SILENCE: Duration = Duration::from_secs(10);
/// One request, whatever its size.
const REQUEST: Duration = Duration::from_secs(60);
/// Tries after the first, with pauses that grow from a tenth of a second. Who waits asks again after that.
const RETRIES: usize = 3;
const RETRY_FOR: Duration = Duration::from_secs(20);

/// The address of a snapshot in a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Location {
    address: Address,
    path: Path,
}

impl Location {
    /// What `url` says.
    ///
    /// # Errors
    /// It is no address of a snapshot.
    pub fn parse(url: &str) -> Result<Self, ObjectsError> {
        Ok(Self::of(Address::parse(url)?)?)
    }

    fn of(address: Address) -> Result<Self, AddressError> {
        let wrong = |why: String| AddressError { url: address.to_string(), why };
        let path = Path::parse(address.path()).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { address, path })
    }

    /// Its folder in the store.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What lies beside it as `name`: snapshots and their ancestors are in one folder.
    pub(crate) fn beside(&self, name: &str) -> Result<Self, ObjectsError> {
        Ok(Self::of(self.address.beside(name)?)?)
    }

    /// The store, by the environment's AWS_ variables.
    pub(crate) fn store(&self) -> Result<Arc<dyn ObjectStore>, ObjectsError> {
        let refused = ObjectsError::store("open", &self.address);
        let Some(bucket) = self.address.bucket() else {
            return Ok(Arc::new(LocalFileSystem::new().with_fsync(true)));
        };
        // Who reads files only needs none; and there is one for the whole process.
        static CRYPTOGRAPHY: Once = Once::new();
        CRYPTOGRAPHY.call_once(|| {
            // Refused where somebody has installed one already, which serves as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
        // Who names a server without TLS means it.
        let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let client = ClientOptions::new()
            .with_connect_timeout(CONNECT)
            .with_read_timeout(SILENCE)
            .with_timeout(REQUEST)
            .with_allow_http(plain);
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        };
        let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY_FOR };
        let builder = builder.with_retry(retry);
        let build = |client| builder.clone().with_client_options(client).build();
        let built = match build(client.clone()) {
            // A host may have no certificates, and a server without TLS needs none.
            Err(_) if plain => build(client.with_no_system_certificates(true)),
            built => built,
        };
        Ok(Arc::new(built.map_err(refused)?))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}
