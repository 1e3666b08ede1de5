//! The rules for names: of backstores, subtypes, configurations, iSCSI targets and portals.

use std::net::SocketAddr;

use crate::error::{Error, Result};

/// The longest backstore name taken, in bytes. The kernel's own limit is that of a file name; the
/// uio name holds it next to a configuration of up to 255 bytes.
pub const NAME_MAX: usize = 128;

/// The longest `dev_config` that the kernel stores, in bytes (`TCMU_CONFIG_LEN - 1` in
/// `drivers/target/target_core_user.c`).
pub const CONFIG_MAX: usize = 255;

/// The longest unit serial number, in bytes (`INQUIRY_VPD_SERIAL_LEN - 1` in
/// `include/target/target_core_base.h`).
pub const SERIAL_MAX: usize = 253;

/// The port of iSCSI targets (RFC 7143, section 13).
pub const ISCSI_PORT: u16 = 3260;

fn invalid(text: String) -> Error {
    Error::Invalid(text)
}

/// Checks a backstore's name.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let complaint = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > NAME_MAX {
        format!("it has {} bytes, {NAME_MAX} are allowed", name.len())
    } else if name.contains('/') {
        "a '/' would split the device's uio name".to_owned()
    } else if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "it holds white space or a control character".to_owned()
    } else if matches!(name, "." | ".." | "hba_info" | "hba_mode") {
        "the name has a meaning of its own in the kernel's tree".to_owned()
    } else {
        return Ok(());
    };
    Err(invalid(format!("bad name {name:?}: {complaint}")))
}

/// Checks a handler's subtype.
pub(crate) fn check_handler(handler: &str) -> Result<()> {
    if handler.is_empty()
        || handler.contains('/')
        || handler.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(invalid(format!(
            "bad handler {handler:?}: a subtype is one word without '/', such as file"
        )));
    }
    Ok(())
}

/// The `dev_config` of a handler and its configuration, checked.
pub(crate) fn dev_config(handler: &str, config: &str) -> Result<String> {
    check_handler(handler)?;
    if config.chars().any(char::is_control) {
        return Err(invalid(format!(
            "bad config {config:?}: it holds a control character"
        )));
    }
    let whole = format!("{handler}/{config}");
    if whole.len() > CONFIG_MAX {
        return Err(invalid(format!(
            "the config {whole} has {} bytes, but the kernel stores at most {CONFIG_MAX}: use a \
             shorter path",
            whole.len()
        )));
    }
    Ok(whole)
}

/// Checks a unit serial number given by the user.
pub(crate) fn check_serial(serial: &str) -> Result<()> {
    if serial.is_empty()
        || serial.len() > SERIAL_MAX
        || serial.trim() != serial
        || !serial.bytes().all(|b| (0x20..=0x7e).contains(&b))
    {
        return Err(invalid(format!(
            "bad serial {serial:?}: 1 to {SERIAL_MAX} printable ASCII characters, none of them a \
             blank at either end"
        )));
    }
    Ok(())
}

/// Checks an iSCSI target name: `iqn.`, `eui.` or `naa.` (RFC 7143, section 4.2.7).
pub(crate) fn check_iqn(iqn: &str) -> Result<()> {
    let complaint = if iqn.len() > 223 {
        "a name has at most 223 bytes"
    } else if iqn.chars().any(|c| c.is_ascii_uppercase()) {
        "initiators compare names in lower case, so write it so"
    } else if let Some(rest) = iqn.strip_prefix("iqn.") {
        if is_iqn_rest(rest) {
            return Ok(());
        }
        "the form is iqn.YYYY-MM.reversed.domain[:anything] with letters, digits, '.', '-', ':'"
    } else if let Some(rest) = iqn.strip_prefix("eui.") {
        if rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(());
        }
        "the form is eui. and 16 hexadecimal digits"
    } else if let Some(rest) = iqn.strip_prefix("naa.") {
        if matches!(rest.len(), 16 | 32) && rest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(());
        }
        "the form is naa. and 16 or 32 hexadecimal digits"
    } else {
        "it starts with iqn., eui. or naa."
    };
    Err(invalid(format!(
        "bad iSCSI name {iqn:?}: {complaint} (for example iqn.2026-11.com.example:disk0)"
    )))
}

/// The part after `iqn.`: a date, a reversed domain, and optionally a colon and free text.
fn is_iqn_rest(rest: &str) -> bool {
    let Some((date, after)) = rest.split_once('.') else {
        return false;
    };
    let Some((year, month)) = date.split_once('-') else {
        return false;
    };
    let digits = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(year, 4) || !digits(month, 2) || !matches!(month.parse::<u8>(), Ok(1..=12)) {
        return false;
    }
    let (domain, text) = match after.split_once(':') {
        Some((domain, text)) => (domain, Some(text)),
        None => (after, None),
    };
    let label = |s: &str| {
        !s.is_empty()
            && s.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    domain.split('.').all(label)
        && text.is_none_or(|t| {
            !t.is_empty()
                && t.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-:".contains(&b))
        })
}

/// Reads a portal: `ADDRESS`, `ADDRESS:PORT` or `[IPV6]:PORT`; the port defaults to 3260.
///
/// # Errors
/// [`Error::Invalid`] if the text is neither; host names are not resolved.
pub fn parse_portal(text: &str) -> Result<SocketAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    text.parse::<SocketAddr>()
        .or_else(|_| bare.parse().map(|ip| SocketAddr::new(ip, ISCSI_PORT)))
        .ok()
        .filter(|portal| portal.port() != 0)
        .ok_or_else(|| {
            invalid(format!(
                "bad portal {text:?}: give an IP address and a port, such as 192.0.2.1:3260 or \
                 [2001:db8::1]:3260"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_the_uio_name_are_refused() {
        for good in ["disk0", "a", "vm-1.root", "x,y", "é", &"n".repeat(NAME_MAX)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "n".repeat(NAME_MAX + 1);
        for bad in [
            "", "a/b", "/", "a b", "a\nb", "a\u{7f}", ".", "..", "hba_info", &long,
        ] {
            assert!(check_name(bad).is_err_and(|e| e.is_usage()), "{bad:?}");
        }
    }

    #[test]
    fn a_config_keeps_commas_and_has_255_bytes_at_most() {
        assert_eq!(dev_config("file", "/a,b").expect("valid"), "file//a,b");
        let fits = "x".repeat(CONFIG_MAX - "file/".len());
        assert_eq!(dev_config("file", &fits).expect("fits").len(), CONFIG_MAX);
        let error = dev_config("file", &format!("{fits}x"))
            .expect_err("too long")
            .to_string();
        assert!(
            error.contains("256 bytes") && error.contains("255"),
            "{error}"
        );
        assert!(dev_config("file", "/a\n").is_err());
        assert!(dev_config("fi/le", "/a").is_err());
        assert!(dev_config("", "/a").is_err());
    }

    #[test]
    fn iscsi_names_follow_the_rfc() {
        for good in [
            "iqn.2026-11.com.example:disk0",
            "iqn.2001-04.com.example",
            "iqn.2001-04.com.example:storage:diskarrays-sn-a8675309",
            "eui.02004567a425678d",
            "naa.52004567ba64678d",
            "naa.62004567ba64678d0123456789abcdef",
        ] {
            assert!(check_iqn(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "iqn",
            "iqn.",
            "iqn.2026-13.com.example:a",
            "iqn.26-11.com.example",
            "iqn.2026-11.",
            "iqn.2026-11.com..example",
            "iqn.2026-11.com.example:",
            "iqn.2026-11.com.example:a/b",
            "iqn.2026-11.com.example:a b",
            "iqn.2026-11.com.example:Disk",
            "iqn.2026-11.com.example:a_b",
            "eui.123",
            "naa.5",
            "disk0",
            &format!("iqn.2026-11.com.example:{}", "a".repeat(220)),
        ] {
            assert!(check_iqn(bad).is_err_and(|e| e.is_usage()), "{bad:?}");
        }
    }

    #[test]
    fn portals_take_a_default_port_and_ipv6() {
        let shown = |text| parse_portal(text).expect(text).to_string();
        assert_eq!(shown("127.0.0.1"), "127.0.0.1:3260");
        assert_eq!(shown("0.0.0.0:3261"), "0.0.0.0:3261");
        assert_eq!(shown("::1"), "[::1]:3260");
        assert_eq!(shown("[::1]"), "[::1]:3260");
        assert_eq!(shown("[::1]:860"), "[::1]:860");
        for bad in [
            "",
            "localhost",
            "1.2.3",
            "1.2.3.4:0",
            "1.2.3.4:99999",
            "[::1",
            "::1]:80",
        ] {
            assert!(parse_portal(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn serials_are_printable_ascii() {
        assert!(check_serial("A 1").is_ok());
        for bad in ["", " a", "a ", "é", "a\t", &"a".repeat(SERIAL_MAX + 1)] {
            assert!(check_serial(bad).is_err(), "{bad:?}");
        }
    }
}
