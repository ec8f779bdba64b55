//! Snapshots in object stores.

use std::path::PathBuf;

use clap::Args;

pub(super) const PUSH_AFTER: &str = "\
The snapshot is there when all of it is, and one that is replaced is until then. An incremental one is put beside its
parent, which is to be there under its name. Zeros and what was not saved take no room.

Environment:
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN   keys; without them those of the machine's role
  AWS_REGION                                                    where the bucket is
  AWS_ENDPOINT_URL                                              another server that speaks S3, such as http://host:9000

Example:
  fathom push web.snapshot s3://backups/web
  fathom push web.snapshot file:///mnt/backups/web
  fathom restore s3://backups/web";

pub(super) const PULL_AFTER: &str = "\
All of it is checked before it gets its name. The parent of an incremental one is pulled by itself, beside it.

Environment: as of `push`.

Example:
  fathom pull s3://backups/web web.snapshot";

#[derive(Debug, Args)]
pub(crate) struct PushArguments {
    /// The snapshot
    pub(crate) path: PathBuf,
    /// Where it goes: s3://BUCKET/NAME, s3://BUCKET/PREFIX/NAME, file:///FOLDER/NAME
    pub(crate) url: String,
    /// Replace the snapshot that is there, once this one is whole
    #[arg(long)]
    pub(crate) replace: bool,
    /// Print JSON: bytes, how long it took
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PullArguments {
    /// Where it is
    pub(crate) url: String,
    /// Where the snapshot is made, a folder; nothing may be there
    pub(crate) path: PathBuf,
    /// Replace the snapshot that is there, once this one is whole
    #[arg(long)]
    pub(crate) replace: bool,
    /// Print JSON: bytes, how long it took
    #[arg(long)]
    pub(crate) json: bool,
}
