//! Who may read: everyone, or who has the bearer token of `http.token_file`.

use std::path::PathBuf;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use ring::hmac;
use ring::rand::SystemRandom;

use super::files::Made;
use crate::fault::{Exit, Fault, Result};
use crate::server::secret;

const KEY: &str = "http.token_file";
/// A shorter one could be found by trying.
const TOKEN_BYTES_MIN: usize = 16;
const SCHEME: &str = "bearer ";

#[derive(Debug)]
pub(super) struct Access(Option<Made<Token>>);

impl Access {
    pub(super) fn new(file: Option<PathBuf>) -> Result<Self> {
        let made = file.map(|file| Made::new(vec![file], Token::read));
        Ok(Self(made.transpose()?))
    }

    /// Whether a request with these headers may read.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.0 else { return true };
        let presented = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        presented
            .and_then(|value| value.split_at_checked(SCHEME.len()))
            .is_some_and(|(scheme, presented)| {
                scheme.eq_ignore_ascii_case(SCHEME.as_bytes())
                    && token.current().is(presented.trim_ascii())
            })
    }

    pub(super) fn look(&self) {
        self.0.iter().for_each(Made::look);
    }
}

/// A token as its code under a key of this process: how long a comparison takes says nothing about it.
struct Token {
    key: hmac::Key,
    code: hmac::Tag,
}

impl Token {
    fn read(files: &[PathBuf]) -> Result<Self> {
        let file = files.iter().next().cloned().unwrap_or_default();
        let token = secret::token(&file, KEY)?;
        let token = token.trim();
        if token.len() < TOKEN_BYTES_MIN {
            return Err(Fault::halt(
                Exit::Config,
                format!("the token in {} is too short", file.display()),
            )
            .remedy(format!(
                "write at least {TOKEN_BYTES_MIN} characters, for example by `openssl rand -hex 32`"
            )));
        }
        Self::new(token.as_bytes())
    }

    fn new(token: &[u8]) -> Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| Fault::bug("there are no random numbers"))?;
        let code = hmac::sign(&key, token);
        Ok(Self { key, code })
    }

    fn is(&self, presented: &[u8]) -> bool {
        hmac::verify(&self.key, presented, self.code.as_ref()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const TOKEN: &str = "canary-0123456789";

    fn with(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, Option<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        (folder, Some(path))
    }

    #[test]
    fn the_token_admits_and_nothing_else_does() {
        let (_folder, path) = file(&format!("{TOKEN}\n"), 0o600);
        let access = Access::new(path).unwrap();
        for right in [format!("Bearer {TOKEN}"), format!("bearer  {TOKEN} ")] {
            assert!(access.admits(&with(&right)), "{right}");
        }
        let wrong = ["", "Bearer", "Bearer ", "Basic x", TOKEN, "Bearer canary"];
        for wrong in wrong.map(str::to_owned).into_iter().chain([
            format!("Bearer {TOKEN}0"),
            format!("Bearer{TOKEN}"),
            format!("Basic {TOKEN}"),
            format!("Bearer {}", TOKEN.to_uppercase()),
        ]) {
            assert!(!access.admits(&with(&wrong)), "{wrong}");
        }
        assert!(!access.admits(&HeaderMap::new()));
        assert!(Access::new(None).unwrap().admits(&HeaderMap::new()));
    }

    #[test]
    fn a_token_that_is_short_or_open_to_others_or_not_there_is_refused() {
        for (text, mode, says) in [
            ("0123456789abcde", 0o600, "too short"),
            ("", 0o600, "does not hold one line with a token"),
            (TOKEN, 0o644, "group or world access"),
        ] {
            let (_folder, path) = file(text, mode);
            let fault = Access::new(path).unwrap_err();
            assert!(fault.to_string().contains(says), "{fault}");
        }
        let fault = Access::new(Some("/nowhere/token".into())).unwrap_err();
        assert!(fault.to_string().contains("does not exist"), "{fault}");
    }
}
