//! Sizes and time spans as people write them.

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const TIB: u64 = 1 << 40;

/// Bytes from `512M`, `2G`, `1.5GiB`, `1048576`: always powers of 1024.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let exponent = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 1,
        "M" | "MB" | "MIB" => 2,
        "G" | "GB" | "GIB" => 3,
        "T" | "TB" | "TIB" => 4,
        _ => return Err(format!("unknown unit {unit:?}; use K, M, G or T")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a size such as 512M or 2G"))?;
    let bytes = number * 1024f64.powi(exponent);
    if bytes < 1.0 || bytes > 2f64.powi(60) {
        return Err(format!("a size of {text} is out of range"));
    }
    Ok(bytes as u64)
}

/// Seconds from `90`, `90s`, `15min`, `2h`, `1d`, `1w`, or several of them in a row, as in
/// systemd.time(7).
///
/// # Errors
/// What is wrong with the text.
pub fn parse_seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a time span such as 90s, 15min or 2h");
    let mut seconds: u64 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "" | "s" | "sec" => 1,
            "m" | "min" => 60,
            "h" | "hr" => 3600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => return Err(wrong()),
        };
        rest = rest[letters..].trim_start();
        let span = number.checked_mul(unit).ok_or_else(wrong)?;
        seconds = seconds.checked_add(span).ok_or_else(wrong)?;
    }
    Ok(seconds)
}

/// The number at the beginning, and what follows.
fn split(text: &str) -> (&str, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "M", "1X", "-1G", "0", "99999999T", "1..2G"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn spans() {
        assert_eq!(parse_seconds("90"), Ok(90));
        assert_eq!(parse_seconds("1h30min"), Ok(5400));
        assert_eq!(parse_seconds("1d 2s"), Ok(86_402));
        for bad in ["", "h", "1y", "-1s", "99999999999999999999s", "1h x"] {
            assert!(parse_seconds(bad).is_err(), "{bad:?}");
        }
    }
}
