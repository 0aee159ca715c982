//! Whether a certificate is for a host, by libpq's rules (`fe-secure-common.c`): names of the alternatives, and the common
//! name where no alternative is of the host's kind.

use std::net::IpAddr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// At most so many names of a certificate are shown.
const SHOWN_MAX: usize = 5;

/// Looks for `host`; the names that were found instead.
pub(super) fn check(certificate: &X509Certificate<'_>, host: &str) -> Result<(), String> {
    let address: Option<IpAddr> = host.parse().ok();
    let mut by_common_name = true;
    let mut seen = Vec::new();
    let Ok(alternatives) = certificate.subject_alternative_name() else {
        return Err("names that cannot be read".to_owned());
    };
    let alternatives = alternatives
        .iter()
        .flat_map(|names| &names.value.general_names);
    for name in alternatives {
        match name {
            GeneralName::DNSName(name) => {
                by_common_name &= address.is_some();
                if fits(name, host) {
                    return Ok(());
                }
                seen.push((*name).to_owned());
            }
            GeneralName::IPAddress(bytes) => {
                by_common_name &= address.is_none();
                let found = address_of(bytes);
                if found.is_some() && found == address {
                    return Ok(());
                }
                seen.extend(found.map(|found| found.to_string()));
            }
            // What cannot be read may be of the host's kind.
            GeneralName::Invalid(..) => by_common_name = false,
            _ => {}
        }
    }
    let common_name = certificate.subject().iter_common_name().next();
    if let Some(name) = common_name.and_then(|name| name.as_str().ok())
        && by_common_name
    {
        if fits(name, host) {
            return Ok(());
        }
        seen.push(name.to_owned());
    }
    Err(shown(&seen))
}

fn shown(names: &[String]) -> String {
    if names.is_empty() {
        return "no name at all".to_owned();
    }
    let mut shown: Vec<String> = names
        .iter()
        .take(SHOWN_MAX)
        .map(|name| name.escape_debug().to_string())
        .collect();
    if names.len() > SHOWN_MAX {
        shown.push(format!("{} more", names.len() - SHOWN_MAX));
    }
    shown.join(", ")
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        16 => bytes.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
        _ => None,
    }
}

/// A name, or one whose first label is `*`, which stands for exactly one label.
fn fits(pattern: &str, host: &str) -> bool {
    if pattern.contains('\0') {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(rest) = pattern.strip_prefix('*').filter(|rest| rest.len() > 1) else {
        return false;
    };
    rest.starts_with('.')
        && host
            .find('.')
            .is_some_and(|dot| dot > 0 && host[dot..].eq_ignore_ascii_case(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_first_label() {
        for (pattern, host, fit) in [
            ("db.example", "DB.Example", true),
            ("*.example", "db.example", true),
            ("*.example", "a.db.example", false),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("d*.example", "db.example", false),
            ("*", "db", false),
            ("*.", "db.", false),
            ("db.example", "db.example.org", false),
            ("db.example\0.org", "db.example", false),
        ] {
            assert_eq!(fits(pattern, host), fit, "{pattern} {host}");
        }
    }
}
