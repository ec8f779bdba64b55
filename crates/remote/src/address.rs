//! The address of a snapshot in an object store, as the user gives it.

use std::fmt;
use std::path::Path;

/// Not the address of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{url}: {why}: give s3://BUCKET/NAME, s3://BUCKET/PREFIX/NAME or file:///FOLDER/NAME")]
pub struct AddressError {
    /// What was given.
    pub url: String,
    /// What is wrong with it.
    pub why: String,
}

/// Where a snapshot is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    url: String,
    bucket: Option<String>,
    path: String,
}

impl Address {
    /// Whether the user means an object store, and not a file.
    #[must_use]
    pub fn is_url(path: &Path) -> bool {
        path.to_str().is_some_and(|path| path.contains("://"))
    }

    /// What `url` says.
    ///
    /// # Errors
    /// It is no address of a snapshot.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let wrong = |why: &str| AddressError { url: url.to_owned(), why: why.to_owned() };
        let url = url.trim_end_matches('/');
        let (bucket, path) = match url.split_once("://") {
            Some(("s3", rest)) => {
                let (bucket, path) = rest.split_once('/').ok_or_else(|| wrong("no name"))?;
                if bucket.is_empty() {
                    return Err(wrong("no bucket"));
                }
                (Some(bucket.to_owned()), path)
            }
            Some(("file", rest)) => {
                let path = rest.strip_prefix('/').ok_or_else(|| wrong("no absolute path"))?;
                (None, path)
            }
            Some(_) => return Err(wrong("of no store that is known")),
            None => return Err(wrong("no address")),
        };
        if path.is_empty() {
            return Err(wrong("no name"));
        }
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(wrong("a part of it is no name"));
        }
        Ok(Self { url: url.to_owned(), bucket, path: path.to_owned() })
    }

    /// Of an S3 store; `None`: files.
    #[must_use]
    pub fn bucket(&self) -> Option<&str> {
        self.bucket.as_deref()
    }

    /// From the bucket's root, or the file system's.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What lies beside it as `name`.
    ///
    /// # Errors
    /// That is no name.
    pub fn beside(&self, name: &str) -> Result<Self, AddressError> {
        let folder = self.url.rsplit_once('/').map_or("", |(folder, _)| folder);
        Self::parse(&format!("{folder}/{name}"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_snapshot() {
        let address = Address::parse("s3://bucket/a/b/web/").expect("an address");
        assert_eq!((address.bucket(), address.path()), (Some("bucket"), "a/b/web"));
        assert_eq!(address.to_string(), "s3://bucket/a/b/web");
        let beside = address.beside("hourly").expect("an address");
        assert_eq!(beside.to_string(), "s3://bucket/a/b/hourly");
        let file = Address::parse("file:///folder/web").expect("an address");
        assert_eq!((file.bucket(), file.path()), (None, "folder/web"));
        assert!(Address::is_url(Path::new("s3://b/n")));
        assert!(!Address::is_url(Path::new("folder/web")));
        for wrong in [
            "s3://bucket",
            "s3:///web",
            "file://web",
            "file:///",
            "gs://b/n",
            "web",
            "s3://b/a//b",
            "s3://b/..",
        ] {
            let error = Address::parse(wrong).expect_err(wrong).to_string();
            assert!(error.starts_with(wrong) && error.contains("give s3://"), "{error}");
        }
        address.beside("..").expect_err("outside");
    }
}
