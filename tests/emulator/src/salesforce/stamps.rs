//! Date and date-time text as Salesforce writes it (`2026-05-01T07:25:37.000+0000`) and the forms it accepts.

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, Timelike};

/// Milliseconds in a day.
pub(crate) const DAY_MS: i64 = 86_400_000;

/// Appends a date-time with offset `+0000`; milliseconds are kept (Salesforce stores whole seconds for its own stamps).
pub(crate) fn push_datetime(out: &mut Vec<u8>, ms: i64) {
    let Some(at) = DateTime::from_timestamp_millis(ms) else {
        out.extend_from_slice(b"1970-01-01T00:00:00.000+0000");
        return;
    };
    push_ymd(out, at.year(), at.month(), at.day());
    out.push(b'T');
    push_padded(out, at.hour(), 2);
    out.push(b':');
    push_padded(out, at.minute(), 2);
    out.push(b':');
    push_padded(out, at.second(), 2);
    out.push(b'.');
    push_padded(out, at.timestamp_subsec_millis(), 3);
    out.extend_from_slice(b"+0000");
}

/// Appends a date given as days since 1970-01-01.
pub(crate) fn push_date(out: &mut Vec<u8>, days: i32) {
    let at = DateTime::from_timestamp(i64::from(days) * 86_400, 0).unwrap_or_default();
    push_ymd(out, at.year(), at.month(), at.day());
}

fn push_ymd(out: &mut Vec<u8>, year: i32, month: u32, day: u32) {
    push_padded(out, u32::try_from(year).unwrap_or(0), 4);
    out.push(b'-');
    push_padded(out, month, 2);
    out.push(b'-');
    push_padded(out, day, 2);
}

fn push_padded(out: &mut Vec<u8>, value: u32, width: usize) {
    let mut digits = [b'0'; 4];
    let mut rest = value;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&digits[4 - width..]);
}

/// The date-time text of `ms`.
pub(crate) fn datetime(ms: i64) -> String {
    let mut out = Vec::with_capacity(28);
    push_datetime(&mut out, ms);
    String::from_utf8(out).unwrap_or_default()
}

/// Reads a date-time with seconds, optional fraction and a zone (`Z`, `+0000`, `+00:00`); milliseconds since 1970.
pub(crate) fn parse_datetime(text: &str) -> Option<i64> {
    let normal = text.replacen(' ', "T", 1);
    if let Some(local) = normal.strip_suffix(['Z', 'z']) {
        return NaiveDateTime::parse_from_str(local, "%Y-%m-%dT%H:%M:%S%.f")
            .ok()
            .map(|at| at.and_utc().timestamp_millis());
    }
    DateTime::parse_from_str(&normal, "%Y-%m-%dT%H:%M:%S%.f%z")
        .ok()
        .map(|at| at.timestamp_millis())
}

/// Reads `yyyy-mm-dd`, or takes the day of a date-time; days since 1970-01-01.
pub(crate) fn parse_date(text: &str) -> Option<i32> {
    let day = NaiveDate::parse_from_str(text.get(..10)?, "%Y-%m-%d").ok()?;
    if text.len() > 10 && parse_datetime(text).is_none() {
        return None;
    }
    i32::try_from(day.signed_duration_since(NaiveDate::default()).num_days()).ok()
}

/// `Wed, 21 Oct 2015 07:28:00 GMT`, the form of HTTP's date headers.
pub(crate) fn http_date(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms)
        .unwrap_or_default()
        .format("%a, %d %b %Y %H:%M:%S GMT")
        .to_string()
}

/// Reads an HTTP date header; milliseconds since 1970.
pub(crate) fn parse_http_date(text: &str) -> Option<i64> {
    let text = text.trim();
    let local = text
        .strip_suffix(" GMT")
        .or_else(|| text.strip_suffix(" UTC"))?;
    NaiveDateTime::parse_from_str(local, "%a, %d %b %Y %H:%M:%S")
        .ok()
        .map(|at| at.and_utc().timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_accepted_zone_form_is_the_same_instant() {
        for text in [
            "2026-05-01T07:25:37.000+0000",
            "2026-05-01T07:25:37Z",
            "2026-05-01T07:25:37.000Z",
            "2026-05-01T09:25:37+02:00",
            "2026-05-01T09:25:37.000+0200",
        ] {
            assert_eq!(
                parse_datetime(text).map(datetime).as_deref(),
                Some("2026-05-01T07:25:37.000+0000"),
                "{text}"
            );
        }
        assert_eq!(
            parse_datetime("2026-05-01T07:25:37"),
            None,
            "a zone is required"
        );
        assert_eq!(parse_datetime("2026-13-01T07:25:37Z"), None);
    }

    #[test]
    fn dates_round_trip_over_leap_days() {
        for (text, days) in [
            ("1970-01-01", 0),
            ("2024-02-29", 19_782),
            ("1969-12-31", -1),
        ] {
            assert_eq!(parse_date(text), Some(days));
            let mut out = Vec::new();
            push_date(&mut out, days);
            assert_eq!(out, text.as_bytes());
        }
        assert_eq!(parse_date("2023-02-29"), None);
        assert_eq!(parse_date("yesterday"), None);
    }

    #[test]
    fn http_dates_round_trip() {
        let ms = 1_445_412_480_000;
        assert_eq!(http_date(ms), "Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(parse_http_date(&http_date(ms)), Some(ms));
        assert_eq!(parse_http_date("yesterday"), None);
    }
}
