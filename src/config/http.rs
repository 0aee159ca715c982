//! The section `[http]`: the address that is served, the token that clients need, and TLS.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::file::Reader;
use super::raw::{RawHttp, Text};
use super::{Http, HttpTls};
use crate::fault::Result;

impl Reader<'_> {
    pub(super) fn http(&self, raw: &RawHttp) -> Result<Option<Http>> {
        let token_file = self.http_file("http.token_file", raw.token_file.as_ref())?;
        let certificate = self.http_file("http.tls_cert", raw.tls_cert.as_ref())?;
        let key = self.http_file("http.tls_key", raw.tls_key.as_ref())?;
        let Some(Text(listen)) = &raw.listen else {
            let lonely = [
                ("http.token_file", token_file.is_some()),
                ("http.tls_cert", certificate.is_some()),
                ("http.tls_key", key.is_some()),
            ];
            return match lonely.into_iter().find(|(_, is_set)| *is_set) {
                None => Ok(None),
                Some((lonely, _)) => Err(self.refuse(
                    lonely,
                    "is set without http.listen",
                    "set http.listen too, or leave the whole section out",
                )),
            };
        };
        let listen: SocketAddr = self.valid(
            "http.listen",
            listen,
            listen.parse().ok(),
            "not an address and port",
            "write for example \"127.0.0.1:9464\" or \"[::1]:9464\"",
        )?;
        let tls = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(HttpTls { certificate, key }),
            (certificate, _) => {
                let (lonely, other) = match certificate {
                    Some(_) => ("http.tls_cert", "http.tls_key"),
                    None => ("http.tls_key", "http.tls_cert"),
                };
                let remedy = format!("set {other} too, or leave both out");
                return Err(self.refuse(lonely, format_args!("is set without {other}"), remedy));
            }
        };
        Ok(Some(Http {
            listen,
            token_file,
            tls,
        }))
    }

    fn http_file(&self, key: &str, path: Option<&Text>) -> Result<Option<PathBuf>> {
        match path {
            Some(path) if path.0.is_empty() => {
                Err(self.refuse(key, "is empty", "name a file, or leave the key out"))
            }
            path => Ok(path.map(|path| PathBuf::from(&path.0))),
        }
    }
}
