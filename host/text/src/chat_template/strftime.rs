//! `strftime_now` of chat templates: some tell the model today's date. In UTC, so that an answer does not depend on where
//! the server stands.

/// Longest format that is looked at; templates use a dozen characters.
const FORMAT_BYTES_MAX: usize = 256;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// `seconds` after 1970-01-01 00:00 UTC in Python's `strftime` notation. `%-d` and the like leave out leading zeros; an
/// unknown directive stays as it is.
pub(super) fn strftime(seconds: u64, format: &str) -> String {
    let mut text = String::new();
    let end = format
        .char_indices()
        .map(|(at, _)| at)
        .find(|at| *at > FORMAT_BYTES_MAX);
    let mut letters = format[..end.unwrap_or(format.len())].chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        let Some(directive) = letters.next() else {
            text.push('%');
            break;
        };
        if directive != '-' {
            match field(seconds, directive) {
                Some(value) => text.push_str(&value),
                None => text.extend(['%', directive]),
            }
            continue;
        }
        match letters.next().map(|bare| (bare, field(seconds, bare))) {
            Some((_, Some(value))) => {
                let bare = value.trim_start_matches('0');
                text.push_str(if bare.is_empty() { "0" } else { bare });
            }
            Some((bare, None)) => text.extend(['%', '-', bare]),
            None => text.push_str("%-"),
        }
    }
    text
}

/// The value of one directive.
fn field(seconds: u64, directive: char) -> Option<String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let (year, month, day) = date(days);
    // The first day was a Thursday.
    let weekday = DAYS[((days + 4) % 7) as usize];
    let name = MONTHS[month as usize - 1];
    let two = |number: u64| format!("{number:02}");
    Some(match directive {
        'Y' => year.to_string(),
        'y' => two(year % 100),
        'm' => two(month),
        'B' => name.to_owned(),
        'b' | 'h' => name[..3].to_owned(),
        'd' => two(day),
        'e' => format!("{day:2}"),
        'j' => {
            let before = (1..month).map(|month| days_of(year, month)).sum::<u64>();
            format!("{:03}", before + day)
        }
        'A' => weekday.to_owned(),
        'a' => weekday[..3].to_owned(),
        'u' => ((days + 3) % 7 + 1).to_string(),
        'w' => ((days + 4) % 7).to_string(),
        'H' => two(hour),
        'I' => two((hour + 11) % 12 + 1),
        'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
        'M' => two(minute),
        'S' => two(second % 60),
        'F' => format!("{year}-{month:02}-{day:02}"),
        'D' => format!("{month:02}/{day:02}/{:02}", year % 100),
        'T' => format!("{hour:02}:{minute:02}:{:02}", second % 60),
        'R' => format!("{hour:02}:{minute:02}"),
        'Z' => "UTC".to_owned(),
        'z' => "+0000".to_owned(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

/// Year, month and day of the month, both from 1, of the day `days` after 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    // The calendar repeats every 400 years of 146,097 days; a year loop is short after that.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    loop {
        let length = (1..=12).map(|month| days_of(year, month)).sum();
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let mut month = 1;
    while days >= days_of(year, month) {
        days -= days_of(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

fn days_of(year: u64, month: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01 Thu 001"),
            (951_782_400, "2000-02-29 Tue 060"),
            (1_709_164_800, "2024-02-29 Thu 060"),
            (1_735_603_200, "2024-12-31 Tue 366"),
            (4_107_542_400, "2100-03-01 Mon 060"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(strftime(seconds, "%Y-%m-%d %a %j"), expected);
        }
        assert!(!strftime(u64::MAX, "%Y %B %p").is_empty());
    }

    #[test]
    fn directives_are_pythons() {
        let seconds = 1_721_984_703;
        assert_eq!(
            strftime(seconds, "%d %b %Y, %A %H:%M:%S %I%p %-d/%-m %F %% %q %"),
            "26 Jul 2024, Friday 09:05:03 09AM 26/7 2024-07-26 % %q %"
        );
    }
}
