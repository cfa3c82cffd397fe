//! Numbers for people: sizes, times, moments.

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes: `512 KiB`, `3 GiB`, `1.46 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (bytes.max(1).ilog2() / 10) as usize;
    let Some(unit) = power.checked_sub(1).map(|index| UNITS[index]) else {
        return format!("{bytes} bytes");
    };
    let one = 1_u64 << (10 * power);
    let whole = bytes / one;
    // Cut, not rounded: 1023.999 MiB is not yet 1 GiB.
    let hundredths = u128::from(bytes % one) * 100 / u128::from(one);
    match (bytes.is_multiple_of(one), hundredths) {
        (true, _) => format!("{whole} {unit}"),
        (false, hundredths) => format!("{whole}.{hundredths:02} {unit}"),
    }
}

/// Bytes in five characters at most, for columns: `0`, `512K`, `1.2M`, `100M`.
pub fn brief(bytes: u64) -> String {
    let power = (bytes.max(1).ilog2() / 10) as usize;
    let Some(unit) = power.checked_sub(1).map(|index| ["K", "M", "G", "T", "P", "E"][index]) else {
        return bytes.to_string();
    };
    // Cut, as `size` does it.
    let tenths = (u128::from(bytes) * 10) >> (10 * power);
    if tenths < 100 {
        format!("{}.{}{unit}", tenths / 10, tenths % 10)
    } else {
        format!("{}{unit}", tenths / 10)
    }
}

/// A chunk as md's tools write it: `512K`.
pub fn short_size(bytes: u64) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// A stretch of time: `5 s`, `2 min 10 s`, `1 h 5 min`, `3 d 2 h`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A request's time, given in microseconds: `85 us`, `1.2 ms`, `2.5 s`.
pub fn latency(us: u64) -> String {
    match us {
        0..1000 => format!("{us} us"),
        1000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// This moment, in seconds since 1970.
pub fn now_unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A moment, given in seconds since 1970: `2026-11-20 23:02:53 UTC`.
pub fn moment(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    // Days to civil date, by Howard Hinnant (howardhinnant.github.io/date_algorithms.html), for days since 0000-03-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (524_288, "512 KiB"),
            (1536, "1.50 KiB"),
            (3 << 30, "3 GiB"),
            ((1 << 30) - 1, "1023.99 MiB"),
            ((3 << 30) + (1 << 29), "3.50 GiB"),
            (u64::MAX, "15.99 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (bytes, text) in [(524_288, "512K"), (1 << 20, "1M"), (1536, "1536"), (2 << 30, "2G"), (0, "0")] {
            assert_eq!(short_size(bytes), text);
        }
    }

    #[test]
    fn brief_sizes_are_brief() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (10 << 10, "10K"),
            ((1 << 20) - 1, "1023K"),
            ((1 << 20) + (1 << 18), "1.2M"),
            (u64::MAX, "15E"),
        ] {
            assert_eq!(brief(bytes), text);
        }
    }

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (130, "2 min 10 s"),
            (3900, "1 h 5 min"),
            (86_400 * 3 + 7200, "3 d 2 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn latencies() {
        for (us, text) in
            [(0, "0 us"), (999, "999 us"), (1200, "1.2 ms"), (24_000, "24.0 ms"), (2_500_000, "2.5 s")]
        {
            assert_eq!(latency(us), text);
        }
    }

    #[test]
    fn moments() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_795_215_773, "2026-11-20 23:02:53 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            ((1 << 40) - 1, "36812-02-20 00:36:15 UTC"),
        ] {
            assert_eq!(moment(seconds), text);
        }
    }
}
