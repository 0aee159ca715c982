//! The password of a connection, asked for at each connect.

use std::fmt;

use super::Host;
use crate::fault::Result;

/// Where the password comes from. **`Debug` shows none.**
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    known: Option<Vec<u8>>,
}

impl Credentials {
    /// A password that is known, or none.
    pub(super) fn known(password: Option<String>) -> Self {
        Self {
            known: password.map(String::into_bytes),
        }
    }

    /// The password for a server on `host`; `None` where none is configured. Never log it.
    ///
    /// # Errors
    /// When its place cannot be read.
    #[expect(clippy::unused_async, reason = "a place may have to be waited for")]
    pub async fn password(&self, _host: &Host) -> Result<Option<Vec<u8>>> {
        Ok(self.known.clone())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}
